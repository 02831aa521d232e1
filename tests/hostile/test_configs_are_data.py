"""Config files hold values; tags that would make or call Python objects are refused, not run."""

from __future__ import annotations

import pytest

from gmm_anomaly.engine import build_config


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir ['{target}']", "!!python/tuple [1, 2]"])
@pytest.mark.parametrize("inherited", [False, True])
def test_python_tags_are_not_run(tmp_path, tag, inherited):
    target, config = tmp_path / "hacked", tmp_path / "bad.yaml"
    config.write_text(f"VERSION: 2\nSEED: {tag.format(target=target)}\n")
    if inherited:
        config = tmp_path / "child.yaml"
        config.write_text("_BASE_: bad.yaml\nVERSION: 2\n")
    with pytest.raises(ValueError, match=r"hold plain values only.*python/.*bad\.yaml.*line 2"):
        build_config(str(config))
    assert not target.exists()


def test_overrides_are_data(tmp_path):
    target = tmp_path / "hacked"
    cfg = build_config("", ["OUTPUT_DIR", f"__import__('os').mkdir('{target}')"])
    assert cfg.OUTPUT_DIR.startswith("__import__") and not target.exists()


def test_files_that_are_no_yaml_and_circles_of_bases_are_named(tmp_path):
    (tmp_path / "a.yaml").write_text("MODEL: {DEVICE: cpu\n")
    with pytest.raises(ValueError, match=r"--config-file: .*a\.yaml cannot be read as YAML; .*line 2"):
        build_config(str(tmp_path / "a.yaml"))
    (tmp_path / "a.yaml").write_text("_BASE_: b.yaml\n")
    (tmp_path / "b.yaml").write_text("_BASE_: a.yaml\n")
    with pytest.raises(ValueError, match=r"the _BASE_ chain of .*a\.yaml never ends"):
        build_config(str(tmp_path / "a.yaml"))
