"""A server for JupyterHub with boto3 in it, as a user's notebook of many days: one client, made once and told nothing.

It answers ``.../s3?call=put_object&Bucket=alice&Key=x&Body=text`` with what the call of this name returns, in JSON.
"""

import json
from urllib.parse import parse_qsl, urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tests.support.small_server import Answer, serve

s3 = boto3.client("s3")


class S3Answer(Answer):
    def answer(self, target: str) -> str:
        asked = urlsplit(target)
        if not asked.path.endswith("/s3"):
            return super().answer(target)
        arguments = dict(parse_qsl(asked.query))
        try:
            said = getattr(s3, arguments.pop("call"))(**arguments)
        except ClientError as error:
            return json.dumps({"error": error.response["Error"]["Code"], "by": error.operation_name})
        except BotoCoreError as error:
            return json.dumps({"error": str(error)})
        said["Body"] = said["Body"].read().decode() if "Body" in said else None
        return json.dumps(said, default=str)


if __name__ == "__main__":
    serve(S3Answer)
