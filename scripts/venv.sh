#!/bin/sh
# Installs gpuward into .venv: `scripts/venv.sh run` (what runs it) or `scripts/venv.sh dev` (and what checks it).
# Plain pip is enough; uv is used where it is present, because it is faster. PYTHON=… chooses the interpreter.
set -eu

what=${1:-run}
cd "$(dirname "$0")/.."
venv=.venv

case $what in
    run) spec=. ;;
    dev) spec='.[dev]' ;;
    *) echo "scripts/venv.sh: unknown installation '$what': expected run or dev" >&2; exit 2 ;;
esac

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }
can_make_venv() { "$1" -c 'import ensurepip, venv' >/dev/null 2>&1; }
have() { command -v "$1" >/dev/null 2>&1; }

# A name on PATH is not enough: version managers put shims there for versions that are not active.
find_python() {
    first=
    for candidate in ${PYTHON:-python3.13 python3.12 python3.11 python3 python}; do
        is_new_enough "$candidate" || continue
        if can_make_venv "$candidate"; then echo "$candidate"; return; fi
        [ -n "$first" ] || first=$candidate
    done
    echo "$first"
}

install_venv_package() { # Debian and Ubuntu ship venv's second half, ensurepip, as a package of its own
    version=$("$1" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    if [ "$(id -u)" = 0 ] && have apt-get; then
        echo "installing python$version-venv"
        export DEBIAN_FRONTEND=noninteractive
        apt-get install -y -q "python$version-venv" >/dev/null 2>&1 && return
        apt-get update -q >/dev/null 2>&1 || true
        apt-get install -y -q "python$version-venv" >/dev/null 2>&1 && return
        apt-get install -y -q python3-venv >/dev/null 2>&1 && can_make_venv "$1" && return
    fi
    echo "$1 ($version) cannot make a virtual environment: its module ensurepip is missing." >&2
    echo "Install it and run make again, on Debian and Ubuntu: apt-get install python$version-venv" >&2
    exit 1
}

make_venv() {
    python=$(find_python)
    if [ -z "$python" ]; then
        if [ -z "${PYTHON:-}" ] && have uv; then
            uv venv --quiet --python '>=3.11' "$venv"
            return
        fi
        echo "gpuward needs Python 3.11 or newer, and none was found." >&2
        echo "Looked for: ${PYTHON:-python3.13 python3.12 python3.11 python3 python}." >&2
        echo "python3 here is: $(python3 --version 2>&1 || echo missing)" >&2
        echo "Install a newer one (Debian, Ubuntu: apt-get install python3.11 python3.11-venv), or name it: make PYTHON=/path/to/python" >&2
        exit 1
    fi
    if ! can_make_venv "$python"; then
        if have uv; then
            uv venv --quiet --python "$python" "$venv"
            return
        fi
        install_venv_package "$python"
    fi
    echo "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
}

# An environment whose interpreter is gone, too old, or which was made in another folder is made anew.
usable() {
    [ -x "$venv/bin/python" ] && is_new_enough "$venv/bin/python" || return 1
    [ ! -e "$venv/bin/pip" ] || head -n 2 "$venv/bin/pip" | grep -qF -e "$(pwd)/$venv/bin/python" -e "$(pwd -P)/$venv/bin/python"
}
usable || { rm -rf "$venv"; make_venv; }

echo "installing $spec into $venv (a minute or two the first time)"
if ! { have uv && uv pip install --quiet --python "$venv/bin/python" -e "$spec" 2>/dev/null; }; then
    # uv does not read pip's configuration, so a machine with its own index may need pip.
    "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -e "$spec"
fi

touch "$venv/.installed-run"
[ "$what" = run ] || touch "$venv/.installed-dev"
