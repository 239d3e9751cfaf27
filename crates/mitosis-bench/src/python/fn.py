"""A function of the Fn project under its kit for Python; run by the kit's own `fdk` command."""

import json

from fdk import response


def handler(ctx, data=None):
    return response.Response(ctx, response_data=json.dumps({"hello": "fn"}))
