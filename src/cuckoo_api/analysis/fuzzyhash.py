"""ssdeep of the samples that came in a flood or are large, made when somebody wants to know it."""

from __future__ import annotations

import msgspec

from cuckoo_api.artefacts import Artefacts
from cuckoo_api.model.errors import NotFound
from cuckoo_api.model.sample import Sample
from cuckoo_api.store import Store


async def with_fuzzy_hash(store: Store, artefacts: Artefacts, sample: Sample) -> Sample:
    """The sample with its ssdeep, which is made and noted where it was kept without.

    One whose file is gone stays as it is.
    """
    if sample.ssdeep is not None:
        return sample
    try:
        # where it cannot be made, it is not tried again and again
        fuzzy = await artefacts.fuzzy_hash(sample.sha256) or ""
    except NotFound:
        return sample
    await store.samples.set_fuzzy_hash(sample.id, fuzzy)
    return msgspec.structs.replace(sample, ssdeep=fuzzy)
