"""Configurations of nginx and uWSGI for this installation, as Debian's packages take them."""

from __future__ import annotations

import grp
import ipaddress
import pwd
import sys
from pathlib import Path

from cuckoo_api.model.errors import ConfigError
from cuckoo_api.server.run import check_bind
from cuckoo_api.settings import Settings

SITE = "cuckoo-api"
UWSGI_SOCKET = Path(f"/run/uwsgi/app/{SITE}/socket")
"""Where Debian's uWSGI listens for an application of this name."""
PLUGINS = Path("/usr/lib/uwsgi/plugins")
DEBIANS = Path("/usr")
"""Where the Python is that the plugin runs."""
SOMAXCONN = Path("/proc/sys/net/core/somaxconn")

BACKLOG = 1024
"""Connections that wait while the workers are replaced."""
FORM = 2 << 20
"""Bytes of an upload beside its file."""
ERRORS = {
    400: "This is no valid HTTP request",
    408: "The request took too long to arrive",
    413: "The request is larger than [api] max_upload_size allows",
    414: "The address is too long",
    431: "The headers of the request are too large",
    500: "The web server has failed; its error log says how",
    502: "The API does not answer; is it running?",
    503: "The API has no room for this request; try again later",
    504: "The API has not answered in time",
}
"""What nginx itself has to say; the API's own errors are passed on as they are."""
ALSO = {431: "\n    error_page 494 =431 /{site}/431;"}
"""nginx has a number of its own for it."""

UWSGI = """\
; {site} on uWSGI, for Debian's packages uwsgi and uwsgi-plugin-python3.
; Save it as /etc/uwsgi/apps-available/{site}.ini, link it into /etc/uwsgi/apps-enabled/, then
; service uwsgi start {site}. It serves the API alone: the engine is a process of its own.
; The plugin runs Debian's own Python, so a virtual environment has to be made by /usr/bin/python3.
[uwsgi]
plugins = python3
{virtualenv}module = cuckoo_api.server.wsgi:create_application()
need-app = true
env = CUCKOO_CWD={cwd}
uid = {user}
gid = {group}
; nginx connects to it
chown-socket = {user}:www-data
chmod-socket = 660
workers = 2
threads = 16
enable-threads = true
; the API does not survive a fork: each worker starts one
lazy-apps = true
listen = {backlog}
buffer-size = 32768
; seconds without a byte of a request's body
socket-timeout = 60
; seconds that requests under way have to end when the workers are replaced
reload-mercy = 60
worker-reload-mercy = 60
; the API logs each request
disable-logging = true
ignore-sigpipe = true
ignore-write-errors = true
disable-write-exception = true
"""

NGINX = """\
# {site} behind nginx. Save it as /etc/nginx/sites-available/{site}, link it into
# /etc/nginx/sites-enabled/, then: nginx -t && service nginx reload
upstream {upstream} {{
    server unix:{socket} fail_timeout=0;
}}

server {{
    listen {listen};

    client_max_body_size {max_body};
    client_body_timeout 60s;

    location / {{
{location}
    }}

    # what nginx says itself is JSON, as what the API says
{errors}
}}
"""

TO_UWSGI = """\
        include /etc/nginx/uwsgi_params;
        uwsgi_pass {upstream};
        # uploads and downloads are passed on as they come, and are not kept in files first
        uwsgi_request_buffering off;
        uwsgi_max_temp_file_size 0;
        uwsgi_read_timeout 600s;
        uwsgi_send_timeout 600s;"""

TO_HTTP = """\
        proxy_pass http://{upstream};
        proxy_http_version 1.1;
        proxy_set_header Connection "";
        proxy_set_header Host $http_host;
        # not what the client says of itself
        proxy_set_header X-Forwarded-For $remote_addr;
        # uploads and downloads are passed on as they come, and are not kept in files first
        proxy_request_buffering off;
        proxy_max_temp_file_size 0;
        proxy_read_timeout 600s;
        proxy_send_timeout 600s;"""

ERROR = """\
    error_page {code} /{site}/{code};{also}
    location = /{site}/{code} {{
        internal;
        client_max_body_size 0;
        default_type application/json;
        add_header X-Content-Type-Options nosniff always;
        add_header Cache-Control no-cache always;
        return {code} '{{"message":"{message}"}}';
    }}"""


def uwsgi_conf(settings: Settings) -> str:
    """The application's file for uWSGI. Its user is the one whose working directory it is."""
    owner = settings.cwd.stat()
    return UWSGI.format(
        site=SITE,
        virtualenv=f"virtualenv = {sys.prefix}\n" if sys.prefix != sys.base_prefix else "",
        cwd=settings.cwd.resolve(),
        user=pwd.getpwuid(owner.st_uid).pw_name,
        group=grp.getgrgid(owner.st_gid).gr_name,
        backlog=min(BACKLOG, int(SOMAXCONN.read_text())),  # with more it does not start
    )


def uwsgi_warning() -> str:
    """What keeps this machine's uWSGI from running this installation; empty where nothing does."""
    if Path(sys.base_prefix) != DEBIANS:
        return (
            f"uWSGI's plugin runs Debian's own Python, and this installation is on the one in "
            f"{sys.base_prefix}; install cuckoo-api-server into a virtual environment that "
            f"{DEBIANS}/bin/python3 has made"
        )
    if not any(PLUGINS.glob("python3*_plugin.so")):
        return f"{PLUGINS} has no Python plugin; install the package uwsgi-plugin-python3"
    return ""


def nginx_conf(settings: Settings, host: str, port: int, unix_socket: Path | None = None) -> str:
    """The site for nginx, which listens there; the API's own settings say how large a body may be.

    It asks uWSGI, or a server that listens on ``unix_socket``. Raises ConfigError for an address
    on which the API would not listen itself.
    """
    check_bind(host, asks_for_token=settings.asks_for_token)
    if not port:
        raise ConfigError(["nginx cannot be told to listen on any free port; name one with -p"])
    upstream = f"_{'http' if unix_socket else 'uwsgi'}_{SITE.replace('-', '_')}"
    location = TO_HTTP if unix_socket else TO_UWSGI
    return NGINX.format(
        site=SITE,
        upstream=upstream,
        socket=unix_socket.absolute() if unix_socket else UWSGI_SOCKET,
        listen=f"{_bracketed(host)}:{port}",
        max_body=settings.api.max_upload_size + FORM,
        location=location.format(upstream=upstream),
        errors="\n".join(
            ERROR.format(
                site=SITE,
                code=code,
                also=ALSO.get(code, "").format(site=SITE),
                message=message,
            )
            for code, message in ERRORS.items()
        ),
    )


def _bracketed(host: str) -> str:
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host
