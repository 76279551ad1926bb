"""Examples for the OpenAPI document: a model of 2 bars of 3 features and 3 of the account. Real ones are larger."""

from __future__ import annotations

from typing import Any

BARS = [[0.12, -0.4, 0.9], [0.08, -0.1, 1.1]]
FLAT = {"features": [0.0, 0.0, 0.25], "position": 0}
LONG = {"features": [0.4, 0.1, 0.25], "position": 1}

DECISION: dict[str, Any] = {"symbol": "NIFTY50", "bars": BARS, "complexity": 0.35, "accounts": {"champion": FLAT}}
BOTH_ARMS: dict[str, Any] = DECISION | {
    "accounts": {"champion": FLAT, "challenger": LONG},
    "acting": "challenger",
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
OUTCOME = {"symbol": "NIFTY50", "champion_bps": 1.8, "challenger_bps": 2.1, "day": "2026-03-02"}
START = {"champion": "ppo/v1", "challenger": "hrm/v1", "reason": "beats the incumbent on held-out sessions"}
START_WITH_PLAN: dict[str, Any] = START | {
    "plan": {
        "steps": [
            {"pause": {"sessions": 1}},
            {"setWeight": 5},
            {"analysis": {"templates": [{"name": "errors", "args": {"limit": 0.05}}]}},
            {"setWeight": 50},
            {"pause": {"sessions": 3}},
        ],
        "analysisTemplates": {
            "errors": {
                "args": {"limit": 0.02},
                "metrics": [
                    {
                        "name": "error_ratio",
                        "provider": {"service": "error_ratio"},
                        "interval": 60,
                        "count": 30,
                        "minSamples": 20,
                        "failureCondition": "result > args.limit",
                    }
                ],
            }
        },
        "limits": {"symbol": {"maxDrawdownPct": 2}, "book": {"maxDailyLossPct": 1}},
        "handover": {"default": "adopt", "triggers": {"error_ratio": "reduce_only"}},
        "market": {
            "quiet": 900,
            "sessions": [{"day": "2026-11-23", "open": 1795405500, "close": 1795428600, "expiry": False}],
        },
        "approvals": {"required": 2},
    }
}
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
