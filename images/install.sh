# Runs inside a build, by the Dockerfiles: install.sh dependencies | package. Everything is pinned by hash; the tools that install it too.
#
#   /opt/pagoda    a virtual environment with what the lock names
#   /opt/package   our own code, which the environment finds through pagoda.pth
#
# /build holds mounts only, which no layer keeps: the locks, a cache, and this machine's certificates and package index, where it has such.
set -eu
export UV_PYTHON_DOWNLOADS=never UV_CACHE_DIR=/build/cache/uv UV_LINK_MODE=copy PIP_CACHE_DIR=/build/cache/pip PIP_DISABLE_PIP_VERSION_CHECK=1
if [ -s /build/ca.crt ]; then export SSL_CERT_FILE=/build/ca.crt PIP_CERT=/build/ca.crt; fi
if [ -s /build/index.env ]; then set -a; . /build/index.env; set +a; fi

# What of a lock the pattern names, with its hashes.
only() { awk -v names="^($1)==" '/^[a-zA-Z]/ {keep = $1 ~ names} keep {print}' "$2"; }

install_tools() {  # outside the layers: tools are no part of an image
  only 'uv' /build/tools.lock > /tmp/uv.lock
  only 'hatchling|packaging|pathspec|pluggy|trove-classifiers' /build/tools.lock > /tmp/tools.lock
  tools=/build/cache/tools-$(cat /tmp/uv.lock /tmp/tools.lock | sha256sum | cut -c1-12)
  if [ ! -e "$tools/.ready" ]; then
    rm -rf "$tools"
    python3 -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --require-hashes --no-deps -r /tmp/uv.lock
    VIRTUAL_ENV=$tools "$tools/bin/uv" pip install --quiet --require-hashes --no-deps -r /tmp/tools.lock
    touch "$tools/.ready"
  fi
  rm /tmp/uv.lock /tmp/tools.lock
}

into() { environment=$1; shift; VIRTUAL_ENV=$environment "$tools/bin/uv" pip install --quiet --compile-bytecode "$@"; }

dependencies() {
  python3 -m venv --without-pip /opt/pagoda
  if [ -z "${TORCH_INDEX:-}" ]; then
    into /opt/pagoda --require-hashes -r /build/requirements.lock
  else
    # Another index builds torch otherwise, so its hashes are not the lock's; the version is. What only CUDA needs stays out.
    awk '/^[a-zA-Z]/ {skip = /^(torch|triton|nvidia-[a-z0-9-]*|cuda-[a-z0-9-]*)[=\[ ]/} !skip {print}' /build/requirements.lock > /tmp/rest.lock
    into /opt/pagoda --require-hashes -r /tmp/rest.lock
    into /opt/pagoda --no-deps --index-url "$TORCH_INDEX" "$(only torch /build/requirements.lock | awk '{print $1; exit}')"
    rm /tmp/rest.lock
  fi
  site=$(/opt/pagoda/bin/python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')
  echo /opt/package > "$site/pagoda.pth"
  # Headers and archives are for building extensions, which no image of ours does.
  rm -rf "$site"/torch/include "$site"/torch/share "$site"/nvidia/*/include
  find "$site" -name '*.a' -delete
}

package() {
  cp -r /build/component /tmp/component
  into "$tools" --no-deps --no-build-isolation --target /opt/package /tmp/component
  rm -r /tmp/component
}

install_tools
"$1"
