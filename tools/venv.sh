# Sourced by tools/test and tools/demo, from the project's root: makes .venv with the tested versions if need be.
# A stamp in .venv remembers what was installed, so that a second run starts at once. Where packages come from is
# pip's own configuration: this file names no index.

venv_stamp() {
    { cat setup.cfg pyproject.toml tools/constraints.txt tools/venv.sh; .venv/bin/python --version; pwd; } | sha256sum
}

venv_python() {
    local candidate
    for candidate in "${CWD_PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    echo "cwd needs Python 3.11 or later; name one in CWD_PYTHON" >&2
    return 1
}

venv_ready() {
    local python
    if [ ! -x .venv/bin/python ]; then
        python=$(venv_python)
        echo "making .venv with $python" >&2
        "$python" -m venv .venv
    fi
    if [ "$(venv_stamp)" = "$(cat .venv/cwd-stamp 2>/dev/null)" ]; then
        return
    fi
    echo "installing the tested versions into .venv" >&2
    # torch first and alone, by its exact version: nothing later may then choose another build of it.
    .venv/bin/python -m pip install --quiet --constraint tools/constraints.txt torch==2.13.0 >&2
    .venv/bin/python -m pip install --quiet --constraint tools/constraints.txt \
        --editable '.[server,gateway,metrics,zoo,plot,redis,test]' >&2
    venv_stamp > .venv/cwd-stamp
}
