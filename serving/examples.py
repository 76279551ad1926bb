"""Examples for the OpenAPI document: a model of 2 bars of 3 features and 3 of the account. Real ones are larger."""

from __future__ import annotations

from typing import Any

BARS = [[0.12, -0.4, 0.9], [0.08, -0.1, 1.1]]
FLAT = {"features": [0.0, 0.0, 0.25], "position": 0}
LONG = {"features": [0.4, 0.1, 0.25], "position": 1}

DECISION: dict[str, Any] = {"symbol": "NIFTY50", "bars": BARS, "complexity": 0.35, "accounts": {"champion": FLAT}}
BOTH_ARMS: dict[str, Any] = DECISION | {
    "accounts": {"champion": FLAT, "challenger": LONG},
    "request_id": "2026-03-02T09:20-NIFTY50",
    "deadline_ms": 40,
}
BOOK: dict[str, Any] = {
    "book_id": "index-pair",
    "instruments": [
        {
            "symbol": "NIFTY50",
            "mu": 0.9,
            "loadings": [0.8, 0.1, 0.0],
            "variance": 0.2,
            "cost": 0.1,
            "position": 0,
        },
        {
            "symbol": "BANKNIFTY",
            "mu": -0.4,
            "loadings": [0.9, -0.3, 0.2],
            "variance": 0.3,
            "cost": 0.1,
            "position": 1,
        },
    ],
    "limits": {"gross": 2, "net": 1},
}
OUTCOME = {"symbol": "NIFTY50", "champion_bps": 1.8, "challenger_bps": 2.1}
START = {"champion": "ppo/v1", "challenger": "hrm/v1", "reason": "beats the incumbent on held-out sessions"}
PROMOTE = {"reason": "the step's gates passed", "actor": "release", "version": 7}
ABORT = {"reason": "drawdown on the desk", "actor": "risk"}
INFER = {
    "id": "r-1",
    "inputs": [
        {"name": "bars", "datatype": "FP32", "shape": [1, 2, 3], "data": [BARS]},
        {"name": "account", "datatype": "FP32", "shape": [1, 3], "data": FLAT["features"]},
        {"name": "complexity", "datatype": "FP32", "shape": [1], "data": [0.35]},
        {"name": "position", "datatype": "INT64", "shape": [1], "data": [0]},
    ],
    "outputs": [{"name": "action"}, {"name": "quantity"}, {"name": "halt_reason"}],
}
