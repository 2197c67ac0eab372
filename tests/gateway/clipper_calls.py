"""Clipper's REST calls as its own clients send them.

`ClipperAdmin` sends what clipper_admin's ClipperConnection of release 0.4 does: the same paths, bodies and headers, and it
takes what comes as that does: any status but 200 is a failure, answers of lists are JSON. Users' own programs send
`requests.post(url, headers={"Content-type": "application/json"}, data=json.dumps(...))`, or the same with curl.
"""

from __future__ import annotations

import http.client
import json
from typing import Any


class ClipperError(Exception):
    """What clipper_admin raises."""


class ClipperAdmin:
    """The calls of clipper_admin.ClipperConnection."""

    def __init__(self, port: int) -> None:
        self.port = port

    def post(self, path: str, data: str | None, content_type: str = "application/json", method: str = "POST") -> Any:
        """(status, headers, text), as `requests` would send it."""
        connection = http.client.HTTPConnection("localhost", self.port, timeout=20)
        connection.request(method, path, data, {"User-Agent": "python-requests/2.18.4", "Accept-Encoding": "gzip, deflate",
                                                "Accept": "*/*", "Connection": "keep-alive", "Content-type": content_type})
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read().decode()

    def admin(self, verb: str, **body: Any) -> str:
        status, _, text = self.post(f"/admin/{verb}", json.dumps(body))
        if status != 200:
            raise ClipperError(f"{status}: {text}")
        return str(text)

    def asked(self, verb: str, **body: Any) -> Any:
        return json.loads(self.admin(verb, **body))

    def predict(self, app: str, **body: Any) -> Any:
        """(status, headers, JSON)."""
        status, headers, text = self.post(f"/{app}/predict", json.dumps(body))
        return status, headers, json.loads(text)

    # as ClipperConnection names them

    def register_application(self, name: str, input_type: str, default_output: str, slo_micros: int) -> str:
        return self.admin("add_app", name=name, input_type=input_type, default_output=default_output,
                          latency_slo_micros=slo_micros)

    def link_model_to_app(self, app: str, model: str) -> str:
        return self.admin("add_model_links", app_name=app, model_names=[model])

    def unlink_model_from_app(self, app: str, model: str) -> str:
        return self.admin("delete_model_links", app_name=app, model_names=[model])

    def register_model(self, name: str, version: Any, input_type: str) -> str:
        return self.admin("add_model", model_name=name, model_version=str(version), labels=["test"], input_type=input_type,
                          container_name="none", model_data_path="DEPRECATED", batch_size=-1)

    def set_model_version(self, name: str, version: Any) -> str:
        return self.admin("set_model_version", model_name=name, model_version=str(version))

    def get_current_model_version(self, name: str) -> str:
        found = [model["model_version"] for model in self.asked("get_all_models", verbose=True)
                 if model["model_name"] == name and model["is_current_version"]]
        if not found:
            raise ClipperError(f"No versions of model {name} registered with Clipper")
        return str(found[0])

    def inspect_instance(self) -> Any:
        return json.loads(self.post("/metrics", None, method="GET")[2])

    def stop_inactive_model_versions(self, names: list[str]) -> None:
        self._unregister(lambda model: model["model_name"] in names and not model["is_current_version"])

    def stop_models(self, names: list[str]) -> None:
        self._unregister(lambda model: model["model_name"] in names)

    def _unregister(self, wanted: Any) -> None:
        for model in filter(wanted, self.asked("get_all_models", verbose=True)):
            self.admin("delete_versioned_model", model_name=model["model_name"], model_version=model["model_version"])
