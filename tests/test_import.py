"""What `import wavcse` loads, and when it registers the model, in processes of their own."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(code: str) -> None:
    done = subprocess.run([sys.executable, "-c", code], stdin=subprocess.DEVNULL, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_loads_no_large_library():
    modules = "wavcse, wavcse_cli, wavcse.data.synthetic.__main__"
    large = "{'torch', 'transformers', 'pandas', 'matplotlib', 'sklearn'}"
    run(f"import sys, {modules}\nassert not {large} & set(sys.modules), {large} & set(sys.modules)")


def test_a_path_that_is_not_there_is_refused_before_a_large_library_is_loaded():
    lines = [
        f"embed none.csv --model {ROOT} --out o.parquet",
        f"embed {ROOT / 'data'} --model ./none --out o.parquet",
        f"embed {ROOT / 'data'} --model {ROOT} --out {ROOT / 'data'}",
        "cache --manifest none.csv --upstream owner/name --out o",
        f"eval --tasks gender --manifest none.csv --model {ROOT} --out o",
    ]
    run(
        "import sys\n"
        "from wavcse_cli import main\n"
        "from wavcse.settings.command import REFUSED\n"
        f"for line in {lines}:\n"
        "    assert main(line.split()) == REFUSED, line\n"
        "assert not {'torch', 'transformers', 'pandas'} & set(sys.modules)\n"
    )


def test_beside_transformers_it_loads_nothing_for_models_until_one_is_read():
    run(
        "import sys, torch, transformers\n"
        "before = set(sys.modules)\n"
        "import wavcse\n"
        "assert not {'transformers.modeling_utils', 'torch._dynamo', 'soundfile'} & (set(sys.modules) - before)\n"
        "upstream = {'model_type': 'wavlm', 'num_hidden_layers': 2}\n"
        "config = transformers.AutoConfig.for_model('wavcse', upstream_config=upstream, selected_layers=[1])\n"
        "assert type(config) is wavcse.WavCSEConfig and config.selected_layers == [1]\n"
        f"extractor = transformers.AutoFeatureExtractor.from_pretrained({str(ROOT)!r})\n"
        "assert type(extractor) is wavcse.WavCSEFeatureExtractor\n"
        "for auto in (transformers.AutoConfig, transformers.AutoModel):\n"
        f"    found = type(auto.from_pretrained({str(ROOT)!r}))\n"
        "    assert found is getattr(wavcse, found.__name__), found\n"
    )


@pytest.mark.slow
def test_the_first_name_that_is_used_registers_the_model():
    """Where transformers is loaded before, `import wavcse` does: root/test_code_of_folders.py."""
    run(
        "import wavcse\n"
        "assert set(wavcse.__all__) < set(dir(wavcse))\n"
        "assert not hasattr(wavcse, 'WavCSE')\n"
        "wavcse.WavCSEConfig\n"
        "from transformers import AutoConfig, AutoFeatureExtractor, AutoModel\n"
        f"for auto in (AutoConfig, AutoFeatureExtractor, AutoModel):\n    found = type(auto.from_pretrained({str(ROOT)!r}))\n"
        "    assert found is getattr(wavcse, found.__name__), found\n"
        "assert all(getattr(wavcse, name).__name__ == name for name in wavcse.__all__)\n"
    )
