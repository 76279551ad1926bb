"""Fyers over its own SDK (fyers-apiv3 3.2, extra `fyers`): login, history, orders, prices, news of orders.

    sdk, sockets     the SDK in its cage: timeouts, logs, redirects, threads
    pace             how fast the account is asked, over all processes
    login, client    who asks; one call and what can become of it
    rows             what the broker says, checked
    history, broker, feed, order_stream     what trading wants of it

Nothing imports the SDK before the first call, and nothing shows a token, a secret or a code.
"""
