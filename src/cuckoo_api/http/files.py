"""Samples: what is known of them, and their bytes."""

from __future__ import annotations

from typing import Literal, cast

import msgspec
from aiohttp import web

from cuckoo_api.http.downloads import Download
from cuckoo_api.http.keys import SERVICE
from cuckoo_api.http.params import path_number
from cuckoo_api.http.replies import reply
from cuckoo_api.http.schemas import SampleView
from cuckoo_api.model.errors import BadInput
from cuckoo_api.model.sample import Sample

Hash = Literal["md5", "sha1", "sha256"]

MISSING = "File not found"


async def view(request: web.Request) -> web.StreamResponse:
    """A sample by its MD5, SHA-1 or SHA-256, in any case, with its tasks."""
    key = cast("Hash", request.match_info["hash"])
    return _sample(*await request.app[SERVICE].sample(key, request.match_info["value"]))


async def view_by_id(request: web.Request) -> web.StreamResponse:
    """A sample by its id, with its tasks."""
    sample_id = path_number(request, "sample_id", MISSING)
    if sample_id == 0:
        raise BadInput("Invalid lookup term")
    return _sample(*await request.app[SERVICE].sample("id", sample_id))


async def get(request: web.Request) -> web.StreamResponse:
    """The bytes of a sample."""
    return Download(request.app[SERVICE].binary(request.match_info["sha256"]))


def _sample(sample: Sample, tasks: list[int]) -> web.Response:
    return reply({"sample": SampleView(**msgspec.structs.asdict(sample), tasks=tasks)})
