"""Fyers on loopback: REST, data socket and order socket as the broker's own SDK speaks them, with faults on demand.

    python -m tests.fyers_emulator --port 0       one process, one port; prints its address
    tests.fyers_emulator.process.running()        the same for a test, with a handle to step the market and break things
    hrm fyers emulate                             the same with a market that plays, for a person without an account

What it holds to is the SDK's source (fyers-apiv3 3.2.0) and the broker's public documentation. The exchange
(exchange.py) is deterministic: ids and trade numbers are counters, orders fill at the last price told.
"""
