"""A leader that looks at its lease, is held up, and writes: with or without its fencing token.

Arguments: unfenced|fenced, port, app, lease in milliseconds. One line on the list `<app>:go` lets it write.
"""

from __future__ import annotations

import sys

import redis

WRITE_IF_NEWEST = """
-- KEYS: the register (hash: token, value). ARGV: token, value.
if tonumber(redis.call('HGET', KEYS[1], 'token') or 0) > tonumber(ARGV[1]) then return 0 end
redis.call('HSET', KEYS[1], 'token', ARGV[1], 'value', ARGV[2])
return 1
"""

if __name__ == "__main__":
    kind, port, app, lease = sys.argv[1:]
    with redis.Redis(port=int(port), protocol=2) as client:
        write = client.register_script(WRITE_IF_NEWEST)
        while True:
            if not client.set(f"{app}:lease", "old leader", nx=True, px=int(lease)):
                continue
            token = client.incr(f"{app}:token")
            if client.get(f"{app}:lease") == b"old leader":
                print("sure of its lease")
                client.blpop([f"{app}:go"], timeout=0)
                if kind == "fenced":
                    done = write(keys=[f"{app}:register"], args=[token, "old leader"])
                else:
                    client.hset(f"{app}:register", mapping={"token": token, "value": "old leader"})
                    done = True
                print("has written" if done else "was refused")
