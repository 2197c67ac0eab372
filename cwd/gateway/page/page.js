"use strict";
// The status page: asks /status.json every second and shows it. Everything is set as text, nothing as HTML.

const PERIOD_MS = 1000;
const $ = (id) => document.getElementById(id);
let token = sessionStorage.getItem("token") || "";
let last = null;

function cell(text, kind) {
  const td = document.createElement("td");
  td.textContent = text === null || text === undefined ? "–" : String(text);
  if (kind) td.className = kind;
  return td;
}

function fill(body, rows) {
  body.replaceChildren(...rows.map((cells) => {
    const tr = document.createElement("tr");
    tr.append(...cells);
    return tr;
  }));
}

function tile(label, value) {
  const div = document.createElement("div");
  const b = document.createElement("b");
  const span = document.createElement("span");
  div.className = "tile";
  b.textContent = value;
  span.textContent = label;
  div.append(b, span);
  return div;
}

function ms(value) {
  return value === null ? value : value.toFixed(2);
}

function duration(seconds) {
  if (seconds < 120) return `${Math.floor(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return `${Math.floor(seconds / 3600)} h`;
}

function codes(found) {
  return Object.entries(found).map(([code, count]) => `${code} ${count}`).join(", ");
}

function show(facts) {
  const state = facts.ready ? "ready" : facts.stopping ? "stopping" : "no controller";
  $("state").textContent = state;
  $("state").className = `badge ${facts.ready ? "good" : "bad"}`;
  $("summary").textContent = `${facts.name} ${facts.version}, up for ${duration(facts.uptime_s)}, `
    + `SLO ${facts.slo_ms} ms where a request has no timeout`;
  const answered = facts.totals.answered;
  const failed = facts.totals.failed + Object.values(facts.strays).reduce((a, b) => a + b, 0);
  const share = answered + failed ? `${(100 * answered / (answered + failed)).toFixed(2)} %` : "–";
  const tiles = [tile("in flight", facts.in_flight), tile("answered in time", answered), tile("not answered", failed),
    tile("share in time", share), tile("models", facts.models_total)];
  if (facts.controller) {
    tiles.push(tile("workers", Object.keys(facts.controller.workers).length));
    tiles.push(tile("in flight at the controller", facts.controller.in_flight));
  }
  $("tiles").replaceChildren(...tiles);
  rows();
  $("workers-part").hidden = !facts.controller;
  if (facts.controller) {
    fill($("workers"), Object.entries(facts.controller.workers).map(([number, w]) => [
      cell(number), cell(w.name), cell(w.device), cell(w.pages_free, "n"), cell(w.pages_total, "n"),
      cell(w.models, "n"), cell(w.actions, "n")]));
  }
}

function rows() {
  const wanted = $("filter").value.toLowerCase();
  const found = last.models.filter((row) => row.name.toLowerCase().includes(wanted));
  $("models-note").textContent = last.models_total > last.models.length
    ? `the busiest ${last.models.length} of ${last.models_total}` : "";
  fill($("models"), found.map((row) => [
    cell(row.name), cell(row.version), cell(row.ready ? "ready" : row.reason, row.ready ? "good" : "bad"),
    cell(row.answered, "n"), cell(row.failed + row.cancelled, "n"),
    cell(codes(row.cancelled ? { ...row.codes, "hung up": row.cancelled } : row.codes)), cell(row.cold, "n"),
    cell(row.mean_batch, "n"), cell(ms(row.p50_ms), "n"), cell(ms(row.p99_ms), "n")]));
}

function trouble(text) {
  $("trouble").textContent = text;
  $("trouble").hidden = !text;
}

async function look() {
  try {
    const answer = await fetch("/status.json", token ? { headers: { Authorization: `Bearer ${token}` } } : {});
    $("login").hidden = answer.status !== 401;
    if (!answer.ok) {
      $("facts").hidden = true;
      $("state").textContent = answer.status === 401 ? "locked" : "error";
      trouble(answer.status === 401 && token ? "That token does not hold." : "");
      return;
    }
    last = await answer.json();
    trouble(last.trouble || (last.away.length ? `No controller answers at ${last.away.join(", ")}.` : ""));
    show(last);
    $("facts").hidden = false;
  } catch (error) {
    $("state").textContent = "gone";
    $("state").className = "badge bad";
    trouble(`The gateway does not answer: ${error.message}`);
  }
}

$("filter").addEventListener("input", () => last && rows());
$("login").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  look();
});
look();
setInterval(() => document.hidden || look(), PERIOD_MS);
