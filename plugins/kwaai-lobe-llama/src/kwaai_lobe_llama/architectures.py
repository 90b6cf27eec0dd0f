"""The architectures that this version of llama.cpp runs as generators of text.

A file of any other is refused before llama.cpp sees it. The list is that of llama.cpp's own
sources (version 0.3.36 of llama-cpp-python) without the encoders, the diffusion models, the audio
and image parts and the drafting heads.
"""

from kwaai_core import ModelFileError
from kwaai_core.gguf import GgufFile

GENERATORS = frozenset(
    """
    llama llama4 deci falcon grok gpt2 gptj gptneox mpt baichuan starcoder refact bloom stablelm
    qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3next qwen3vl qwen3vlmoe qwen35 qwen35moe phi2
    phi3 phimoe plamo plamo2 plamo3 codeshell orion internlm2 minicpm minicpm3 gemma gemma2 gemma3
    gemma3n gemma4 starcoder2 mamba mamba2 jamba falcon-h1 xverse command-r cohere2 cohere2moe dbrx
    olmo olmo2 olmoe openelm arctic deepseek deepseek2 deepseek32 deepseek4 chatglm glm4 glm4moe
    glm-dsa bitnet jais jais2 nemotron nemotron_h nemotron_h_moe exaone exaone4 exaone-moe rwkv6
    rwkv6qwen2 rwkv7 arwkv7 granite granitemoe granitehybrid granite_swa chameleon plm bailingmoe
    bailingmoe2 bailingmoe3 dots1 arcee afmoe laguna ernie4_5 ernie4_5-moe hunyuan-moe
    hunyuan-dense hy_v3 hy_v4 smollm3 gpt-oss lfm2 lfm2moe smallthinker seed_oss grovemoe apertus
    minimax-01 minimax-m2 minimax-m3 pangu-embedded mistral3 mistral4 mimo2 step35 maincoder
    kimi-linear kimi-k3 mellum
    """.split()  # noqa: SIM905  # one a line would be three pages
)


def check_architecture(file: GgufFile) -> None:
    """Refuse, with a :class:`ModelFileError`, what cannot be run as a generator of text."""
    if file.architecture not in GENERATORS:
        raise ModelFileError(
            f"{file.path} is of the architecture “{file.architecture}”, which this version of "
            "llama.cpp does not run as a generator of text: use a model of another one"
        )
