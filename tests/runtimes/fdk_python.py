"""A function of the Fn project under its kit for Python; see the kit's own `fdk` command."""

import secrets

from fdk import response

STATE = {"secret": secrets.token_hex(8), "count": 0}


def handler(ctx, data=None):
    STATE["count"] += 1
    work = sum(i * i for i in range(1000))
    return response.Response(ctx, response_data=f"{STATE['secret']} {STATE['count']} {work}")
