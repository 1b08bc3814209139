from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from lorikeet import api
from lorikeet.adapters import _storage as storage
from lorikeet.base.errors import CheckpointError
from lorikeet.base.nouns import Conversation, Message

OWN = """
from lorikeet.data.templates._contract import TemplateOptions
from lorikeet.data.templates.chatml import ChatML
class Own(TemplateOptions):
    system: str = "s"
    def bind(self, tokenizer):
        return ChatML(system=self.system).bind(tokenizer)
"""


def test_a_folder_answers_with_someones_own_template(tiny_model: Path, tmp_path: Path) -> None:
    """Such a kind need not declare the field `kind`, in a recipe or here."""
    (tmp_path / "own.py").write_text(OWN)
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    template = {"kind": str(tmp_path / "own.py"), "system": "Be kind."}
    (folder / storage.IDENTITY).write_text(json.dumps({"template": template}))
    with pytest.raises(CheckpointError, match="names code as its template"):
        api.engine(folder)
    engine = api.engine(folder, {"allow_code": True})
    prompt = engine.prompt(Conversation((Message("user", "q"),)))
    assert "system\nBe kind." in engine.tokenizer.decode(prompt)
