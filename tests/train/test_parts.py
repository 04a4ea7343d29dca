"""Parts of every supported family, patterns of parameter names."""

import pytest

from tests.tiny import FAMILIES
from vtskip import attach
from vtskip.errors import ConfigError
from vtskip.runtime.attach import attached
from vtskip.train.parts import PARTS, matching, part_of, plain


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_its_parts(name):
    """The decoder and its head are ``lm``, and nothing else is; tower and connector are told apart."""
    model = FAMILIES[name].model()
    attach(model, "mod")
    text = {id(p) for module in (model.get_decoder(), model.get_output_embeddings()) for p in module.parameters()}
    found = {part: set() for part in PARTS}
    for key, parameter in model.named_parameters():
        found[part_of(key)].add(key)
        assert (part_of(key) in ("lm", "router")) == (id(parameter) in text), key
    routers = [k for k in found["router"] if ".router." in k]
    assert found["vision"] and found["connector"] and found["lm"] and len(routers) == len(found["router"])
    assert attached(model) is not None


def test_names_are_plain_inside_any_wrapper():
    name = "language_model.layers.0.self_attn.q_proj.weight"
    assert plain(f"module.base_model.model.{name.replace('q_proj', 'q_proj.base_layer')}") == name
    assert part_of("base_model.model.model.language_model.layers.3.self_attn.q_proj.lora_A.default.weight") == "lm"
    assert part_of("module.language_model.model.layers.1.vtskip.router.weight") == "router"


def test_patterns_name_something_or_are_refused():
    names = ["model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight", "lm_head.weight"]
    assert matching("*.layers.1.*", names, "key") == names[1:2]
    assert matching("lm_head*", names, "key") == names[2:]
    for pattern, near in (("*.up_prj.*", "up_proj"), ("lm_haed.weight", "lm_head"), ("*.layer.*", "layers")):
        with pytest.raises(ConfigError, match=f"key .*: no such name; did you mean '{near}'"):
            matching(pattern, names, "key")
    with pytest.raises(ConfigError, match=r"no such name; names: model.layers.0.*lm_head.weight"):
        matching("*.zzz.*", names, "key")
