"""The part of a model card that says how to load an export, for each format."""

from __future__ import annotations

from collections.abc import Iterator

from minilm_cli.export.markdown import block, code
from minilm_cli.models.sentence_head import Normalize, SentenceHead

#: Stands for the folder, or the repository that it is uploaded to.
FOLDER = "THIS_FOLDER"

#: Pooling modes by their names in fastembed.
_FASTEMBED = {"mean": "MEAN", "cls": "CLS"}


def loading(form: str, head: SentenceHead | None, width: int, *, auto: str, quantised: bool = False) -> str:
    """How to load an export. width: of its embeddings, or of its states. auto: the name of transformers' auto class."""
    if form == "hf":
        sections = _hf(auto)
    elif form == "onnx":
        sections = _onnx(head, width, "onnx/model_quantized.onnx" if quantised else "onnx/model.onnx")
    else:
        sections = _sentence_transformers(head)
    return "\n\n".join(["## How to load it", *sections])


def _hf(auto: str) -> Iterator[str]:
    yield _python(f"""
from transformers import {auto}, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{FOLDER}")
model = {auto}.from_pretrained("{FOLDER}")
states = model(**tokenizer("Some text.", return_tensors="pt")).last_hidden_state
""")
    if auto == "AutoModel":
        yield (
            "`AutoModelForSequenceClassification`, `AutoModelForMaskedLM` and their relatives load it too. They add a"
            " new head with random weights: fine-tune the model before its predictions are used."
        )


def _sentence_transformers(head: SentenceHead | None) -> Iterator[str]:
    yield _python(f"""
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{FOLDER}")
embeddings = model.encode(["Some text.", "Some more text."])
print(model.similarity(embeddings, embeddings))
""")
    if head is not None and head.prompts:
        name = next(iter(head.prompts))
        yield f"It has prompts for some kinds of text: {code(f'model.encode(texts, prompt_name={name!r})')} adds one."


def _onnx(head: SentenceHead | None, width: int, file: str) -> Iterator[str]:
    output = "last_hidden_state" if head is None else "sentence_embedding"
    yield "With ONNX Runtime:"
    yield _python(f"""
from onnxruntime import InferenceSession
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{FOLDER}")
session = InferenceSession("{FOLDER}/{file}")
inputs = tokenizer(["Some text.", "Some more text."], padding=True, truncation=True, return_tensors="np")
[{"states" if head is None else "embeddings"}] = session.run(["{output}"], dict(inputs))
""")
    if head is not None:
        yield "With sentence-transformers (`pip install sentence-transformers[onnx]`):"
        yield _python(f"""
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{FOLDER}", backend="onnx", model_kwargs={{"file_name": "{file}"}})
embeddings = model.encode(["Some text.", "Some more text."])
""")
    # The others pool themselves, and only in these ways.
    if head is None or (_plain(head) and head.pooling[0] in _FASTEMBED):
        yield from _javascript(head, quantised="quantized" in file)
    if head is not None and _plain(head) and head.pooling[0] in _FASTEMBED:
        yield from _fastembed(head, width, file)
        yield "With text-embeddings-inference, which takes `onnx/model.onnx`; give the full path of the folder:"
        image = "ghcr.io/huggingface/text-embeddings-inference:cpu-1.8"
        yield block("bash", f"docker run -p 8080:80 -v {FOLDER}:/model {image} --model-id /model")


def _javascript(head: SentenceHead | None, *, quantised: bool) -> Iterator[str]:
    dtype = "q8" if quantised else "fp32"
    pooling = ""
    if head is not None:
        pooling = f', {{ pooling: "{head.pooling[0]}", normalize: {"true" if head.layers else "false"} }}'
    yield ("With transformers.js; a folder by its full path, and a repository of the Hub without the line about `env`:")
    yield block(
        "js",
        f"""
import {{ env, pipeline }} from "@huggingface/transformers";

Object.assign(env, {{ localModelPath: "", allowRemoteModels: false }});
const encode = await pipeline("feature-extraction", "{FOLDER}", {{ dtype: "{dtype}" }});
const {"states" if head is None else "embeddings"} = await encode(["Some text.", "Some more text."]{pooling});
""",
    )


def _fastembed(head: SentenceHead, width: int, file: str) -> Iterator[str]:
    yield "With fastembed:"
    yield _python(f"""
from fastembed import TextEmbedding
from fastembed.common.model_description import ModelSource, PoolingType

TextEmbedding.add_custom_model(
    model="student",
    pooling=PoolingType.{_FASTEMBED[head.pooling[0]]},
    normalization={bool(head.layers)},
    sources=ModelSource(hf="student"),
    dim={width},
    model_file="{file}",
)
model = TextEmbedding("student", specific_model_path="{FOLDER}")
embeddings = list(model.embed(["Some text.", "Some more text."]))
""")


def _plain(head: SentenceHead) -> bool:
    """Whether nothing but one pooling and scaling to length 1 makes the embeddings."""
    return len(head.pooling) == 1 and all(isinstance(layer, Normalize) for layer in head.layers)


def _python(text: str) -> str:
    return block("python", text)
