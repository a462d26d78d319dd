# Sourced by the other scripts. Sets `python` to the interpreter of an environment that has torch, or will have it:
# an active environment with torch is used as it is; otherwise .venv is created or reused.

if [ -n "${VIRTUAL_ENV:-}" ] && "$VIRTUAL_ENV/bin/python" -c 'import torch, torchvision' 2>/dev/null; then
    python="$VIRTUAL_ENV/bin/python"
    echo "using the active environment, which has torch: $VIRTUAL_ENV"
else
    if [ ! -x .venv/bin/python ]; then
        "${PYTHON:-python3}" -c 'import sys; sys.exit(sys.version_info < (3, 10))' || {
            echo "error: Python 3.10 or newer is needed, got $("${PYTHON:-python3}" --version); set PYTHON" >&2
            exit 2
        }
        echo "making .venv"
        "${PYTHON:-python3}" -m venv .venv
    fi
    python=".venv/bin/python"
fi

# Install the project with the given extras, unless the same pyproject.toml has been installed here before.
install() {
    local stamp installed
    stamp="$1 $(cksum < pyproject.toml) $PWD"
    installed="$("$python" -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/imgcls-search.installed"
    if [ "$(cat "$installed" 2>/dev/null)" != "$stamp" ]; then
        echo "installing the project$1 (torch and torchvision take a few minutes the first time)"
        # uv downloads and unpacks many packages in parallel, pip one after the other.
        install_with_uv "$1" ||
            "$python" -m pip install --quiet --disable-pip-version-check --no-compile -e ".$1"
        # Otherwise each of the first processes would compile torch's modules.
        PYTHONDONTWRITEBYTECODE="" "$python" -m imgcls_search.executors.warm
        echo "$stamp" > "$installed"
    fi
}

# Install with uv, which does not read pip's settings.
install_with_uv() {
    "$python" -m pip install --quiet --disable-pip-version-check uv || return 1
    (
        set_uv_as_pip
        "$python" -m uv pip install --quiet --python "$("$python" -c 'import sys; print(sys.executable)')" -e ".$1"
    ) || {
        echo "uv could not install it; trying pip" >&2
        return 1
    }
}

# Make uv use pip's package indexes for the rest of this shell.
set_uv_as_pip() {
    set_as_pip UV_CONSTRAINT constraint
    set_as_pip UV_FIND_LINKS find-links
    set_as_pip UV_DEFAULT_INDEX index-url
    set_as_pip UV_INDEX extra-index-url
    # Like pip, take the newest version from all indexes.
    export UV_INDEX_STRATEGY="${UV_INDEX_STRATEGY:-unsafe-best-match}"
}

# Export a variable of uv with the value of pip's setting (from the environment or pip's files), unless it is set.
set_as_pip() {
    local word kept=""
    [ -z "${!1:-}" ] || return 0
    # pip lists the environment first; a setting with several values has several lines.
    for word in $("$python" -m pip config list 2> /dev/null |
        sed -nE "s/^(:env:|global|install)\.$2='(.*)'\$/\2/p" | head -n 1 | sed 's/\\n/ /g'); do
        # pip ignores files that do not exist.
        case "$word" in file://*) [ -e "${word#file://}" ] || continue ;; esac
        kept="${kept:+$kept }$word"
    done
    [ -z "$kept" ] || export "$1=$kept"
}

# Install the browser for the tests of pages; without it they are skipped with a message.
install_browser() {
    if command -v chromium > /dev/null; then
        return
    fi
    local root=""
    [ "$(id -u)" = 0 ] || root="sudo"
    if command -v apt-get > /dev/null && { [ -z "$root" ] || command -v sudo > /dev/null; }; then
        echo "installing Debian's chromium for the tests of pages"
        if $root apt-get update -qq && $root apt-get install -y -qq --no-install-recommends chromium > /dev/null; then
            return
        fi
    fi
    echo "warning: chromium could not be installed here; the tests of pages will be skipped" >&2
}
