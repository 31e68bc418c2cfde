"""GET /first-boot/install.sh: the script that makes a Debian machine call home."""

from fastapi import APIRouter
from starlette.responses import Response

from netboot.first_boot import INSTALL_PATH, install_script, machines_url, operator_keys
from netboot.problems import documented
from netboot.services import Use

router = APIRouter(tags=["machines"])

MEDIA_TYPE = "text/x-shellscript; charset=utf-8"


@router.get(
    INSTALL_PATH,
    response_class=Response,
    responses=documented(408, 413, 429, 500, 503)
    | {200: {"content": {"text/x-shellscript": {"schema": {"type": "string"}}}}},
)
def show_install_script(services: Use) -> Response:
    """The installer, for `| MUSTER_TOKEN=... sh` as root. All may read it: it holds no secret."""
    settings = services.settings
    script = install_script(machines_url(settings), operator_keys(settings))
    return Response(script, media_type=MEDIA_TYPE)
