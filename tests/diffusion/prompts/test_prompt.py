"""A prompt with a negative prompt and metadata of its own."""

from diffusion.prompts.prompt import Prompt, metadata_of, negative_of


def test_a_prompt_is_its_text_and_carries_its_row():
    prompt = Prompt("a red square", negative="blur", metadata={"count": 2})
    assert prompt == "a red square" and {prompt: 1} == {"a red square": 1}
    assert negative_of(prompt, "noise") == "blur" and metadata_of(prompt) == {"count": 2}
    assert negative_of(Prompt("x", negative=""), "noise") == ""
    assert negative_of("plain", "noise") == "noise" and metadata_of("plain") == {}
