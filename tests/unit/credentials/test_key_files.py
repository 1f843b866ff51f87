"""Which key files the credentials have, for those who want to know how old a key is."""

from __future__ import annotations

import pytest
from traitlets.config import Config

from casa_hub.facility import Facility

FILES = {
    "XCache.key_file": "/keys/xcache",
    "HTCondor.key_file": "/keys/condor",
    "Dask.secret_file": "/keys/dask",
    "ServiceX.tokens_file": "/keys/servicex",
}


@pytest.mark.parametrize("setting", FILES)
def test_each_key_file_is_named_by_its_setting(setting: str) -> None:
    config = Config(Facility={"credentials": ["xcache", "htcondor", "dask", "bearer", "servicex"]})
    section, trait = setting.split(".")
    config[section][trait] = FILES[setting]
    named = {
        name: path for minter in Facility(config=config).minters.values() for name, path in minter.key_files.items()
    }
    assert {name: path for name, path in named.items() if path} == {setting: FILES[setting]}
