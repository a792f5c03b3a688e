"""An application of the usual weight: a framework, and a table that it computes when imported."""

from __future__ import annotations

from fastapi import FastAPI

app = FastAPI()
PRICES = {f"article {number}": {"price": number, "tags": ["a", "b"]} for number in range(100_000)}


@app.get("/")
async def price(article: int = 7) -> dict[str, object]:
    return PRICES[f"article {article}"]
