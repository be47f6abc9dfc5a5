"""Fake buckets on this machine for real clients: Google Cloud Storage (gcsfs, TensorStore) and S3 (s3fs).

They lack what the real ones lack: there is no rename and no append, and a folder is a prefix of names. An object
appears when its upload is complete. See https://cloud.google.com/storage/docs/json_api/v1.
"""

import base64
import hashlib
import itertools
import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from urllib.request import Request, urlopen

NAME = "bucket"


class GcsBucket(ThreadingHTTPServer):
    """A server of Google Cloud Storage's protocol; `objects` is name -> (generation, bytes)."""

    packages = ("gcsfs",)
    last = "commit_success.txt"  # the last file of a checkpoint to be written

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects, self.lock, self.uploads = {}, threading.RLock(), {}
        self.generations = itertools.count(1)
        self.url = f"http://127.0.0.1:{self.server_port}"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

    def handle_error(self, *whose):
        if not isinstance(sys.exception(), ConnectionError):  # a client has closed its connection
            super().handle_error(*whose)

    def environment(self):
        """Return the environment variables that point clients to this server."""
        return {
            "STORAGE_EMULATOR_HOST": self.url,
            "TENSORSTORE_GCS_HTTP_URL": self.url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "any",
            "GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT": "false",  # it would ask Google what kind of bucket this is
        }

    def put(self, name, data):
        """Write an object."""
        with self.lock:
            self.objects[name] = next(self.generations), data

    def names(self, prefix):
        """Return the names of objects, without the prefix."""
        with self.lock:
            return [name.removeprefix(prefix) for name in self.objects if name.startswith(prefix)]

    def files(self, prefix):
        """Return name without the prefix -> bytes."""
        with self.lock:
            return {
                name.removeprefix(prefix): data for name, (_, data) in self.objects.items() if name.startswith(prefix)
            }


class S3Bucket:
    """A server of S3's protocol, by moto."""

    packages = ("s3fs", "moto")
    last = "uploaded.txt"

    def __init__(self):
        from moto.server import ThreadedMotoServer

        self._server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)

    def __enter__(self):
        import boto3

        self._server.start()
        self.url = "http://{}:{}".format(*self._server.get_host_and_port())
        keys = {"aws_access_key_id": "any", "aws_secret_access_key": "any", "region_name": "us-east-1"}
        self._client = boto3.client("s3", endpoint_url=self.url, **keys)
        self._client.create_bucket(Bucket=NAME)
        return self

    def __exit__(self, *_):
        urlopen(Request(f"{self.url}/moto-api/reset", method="POST")).close()  # moto keeps objects for all servers
        self._server.stop()

    def environment(self):
        """Return the environment variables that point clients to this server."""
        keys = {name: "any" for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")}
        return {"AWS_ENDPOINT_URL": self.url, "AWS_DEFAULT_REGION": "us-east-1"} | keys

    def put(self, name, data):
        """Write an object."""
        self._client.put_object(Bucket=NAME, Key=name, Body=data)

    def names(self, prefix):
        """Return the names of objects, without the prefix."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=NAME, Prefix=prefix)
        return [item["Key"].removeprefix(prefix) for page in pages for item in page.get("Contents", [])]

    def files(self, prefix):
        """Return name without the prefix -> bytes."""
        read = lambda name: self._client.get_object(Bucket=NAME, Key=prefix + name)["Body"].read()  # noqa: E731
        return {name: read(name) for name in self.names(prefix)}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer("GET", self.path, self._body())

    def do_POST(self):
        self._answer("POST", self.path, self._body())

    do_PUT = do_PATCH = do_POST

    def do_DELETE(self):
        self._answer("DELETE", self.path, b"")

    def _body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            chunks = []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(chunks)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _answer(self, method, path, body):
        with self.server.lock:
            status, headers, data = self._handle(method, path, body)
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(data))}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _handle(self, method, path, body):
        url = urlsplit(path)
        query = {name: values[0] for name, values in parse_qs(url.query, keep_blank_values=True).items()}
        parts = [unquote(part) for part in re.sub("^/(download|upload)", "", url.path).split("/")]
        if url.path.startswith("/upload/"):
            return self._upload(query, body)
        if len(parts) == 5:  # /storage/v1/b/BUCKET
            return _json({"name": NAME, "storageClass": "STANDARD", "location": "HERE"})
        if len(parts) == 6:  # .../o
            return self._list(query)
        name = parts[6]
        if "rewriteTo" in parts and name in self.server.objects:
            return _json({"done": True, "resource": self._put(parts[-1], self.server.objects[name][1])})
        if name not in self.server.objects:
            return _json({"error": {"code": 404, "message": "Not Found"}}, 404)
        generation, data = self.server.objects[name]
        if not self._meets_condition(query, generation):
            return (304, {}, b"") if "ifGenerationNotMatch" in query else _json({"error": {"code": 412}}, 412)
        if method == "DELETE":
            del self.server.objects[name]
            return 204, {}, b""
        if query.get("alt") != "media":
            return _json(self._describe(name))
        headers = {"x-goog-generation": str(generation), "Content-Type": "application/octet-stream"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if not part:
            return 200, headers, data
        start, stop = int(part[1]), min(len(data), int(part[2]) + 1 if part[2] else len(data))
        if start >= len(data):
            return _json({"error": {"code": 416}}, 416)
        return 206, headers | {"Content-Range": f"bytes {start}-{stop - 1}/{len(data)}"}, data[start:stop]

    def _meets_condition(self, query, generation):
        if "ifGenerationNotMatch" in query:
            return int(query["ifGenerationNotMatch"]) != generation
        return "ifGenerationMatch" not in query or int(query["ifGenerationMatch"]) == generation

    def _upload(self, query, body):
        kind, name = query["uploadType"], query.get("name")
        if kind == "resumable" and "upload_id" not in query:
            name = name or json.loads(body)["name"]
            if not self._meets_condition(query, self.server.objects.get(name, (0, b""))[0]):
                return _json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
            number = str(next(self.server.generations))
            self.server.uploads[number] = [name, b""]
            place = f"{self.server.url}/upload/storage/v1/b/{NAME}/o?uploadType=resumable&upload_id={number}"
            return 200, {"Location": place}, b""
        if kind == "resumable":
            upload = self.server.uploads[query["upload_id"]]
            upload[1] += body  # gcsfs sends them in order
            if self.headers["Content-Range"].endswith("/*"):
                return 308, {"Range": f"bytes=0-{len(upload[1]) - 1}"}, b""
            return _json(self._put(*upload))
        if kind == "multipart":
            described, body = _parts(body, self.headers["Content-Type"])
            name = name or json.loads(described)["name"]
        if not self._meets_condition(query, self.server.objects.get(name, (0, b""))[0]):
            return _json({"error": {"code": 412, "message": "conditionNotMet"}}, 412)
        return _json(self._put(name, body))

    def _put(self, name, data):
        self.server.objects[name] = next(self.server.generations), data
        return self._describe(name)

    def _describe(self, name):
        generation, data = self.server.objects[name]
        md5, now = base64.b64encode(hashlib.md5(data).digest()).decode(), "2026-01-01T00:00:00.000Z"
        fixed = {"kind": "storage#object", "bucket": NAME, "metageneration": "1", "timeCreated": now, "updated": now}
        link = f"{self.server.url}/download/storage/v1/b/{NAME}/o/{name.replace('/', '%2F')}?alt=media"
        sizes = {"size": str(len(data)), "md5Hash": md5, "generation": str(generation)}
        return fixed | sizes | {"name": name, "id": name, "mediaLink": link, "etag": str(generation)}

    def _list(self, query):
        prefix, delimiter = query.get("prefix", ""), query.get("delimiter")
        items, folders = [], set()
        for name in sorted(self.server.objects):
            if not name.startswith(prefix) or name < query.get("startOffset", ""):
                continue
            if query.get("endOffset") and name >= query["endOffset"]:
                continue
            if delimiter and delimiter in name[len(prefix) :]:
                folders.add(prefix + name[len(prefix) :].split(delimiter)[0] + delimiter)
            else:
                items.append(self._describe(name))
        items = items[: int(query["maxResults"])] if "maxResults" in query and not delimiter else items
        return _json({"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})


def _json(value, status=200):
    return status, {"Content-Type": "application/json; charset=UTF-8"}, json.dumps(value).encode()


def _parts(body, content_type):
    """Return the contents of a multipart message's parts."""
    boundary = b"--" + re.search(r'boundary="?([^";]+)"?', content_type)[1].encode()
    return [re.split(rb"\n\n", part[:-1], maxsplit=1)[1] for part in body.split(boundary)[1:-1]]


BUCKETS = {"gs": GcsBucket, "s3": S3Bucket}  # by protocol
