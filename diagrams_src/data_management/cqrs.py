"""Commands and queries of an application take different ways through Redis.

A command reads the history of one aggregate, decides, and appends facts to the log at the version that it
has read. A projector follows the log, partition by partition, and commits rows and checkpoint of the live
model as one. A second generation of the model is built beside it by another projector; one key says which of
them is live. Reactions follow the same log with a checkpoint of their own. A query reads the live model, and
waits for the position that its command was given.
"""

from diagrams.onprem.client import Users
from diagrams.onprem.inmemory import Redis

from tools.diagrams import box, canvas, cluster, edge, icon

with canvas("CQRS"):
    callers = icon(Users, "Callers")
    with cluster("command side"):
        execute = box("execute", "decide upon history", tone="warn", width="1.6")
    log = icon(Redis, "Log", "facts, by partition")
    with cluster("projectors"):
        live = box("Projector", "generation 1", width="1.5")
        built = box("Projector", "generation 2", tone="quiet", width="1.5")
        reaction = box("Reaction", "mails, calls", width="1.5")
    with cluster("query side"):
        rows = icon(Redis, "Live model", "rows + checkpoint")
        rows2 = icon(Redis, "Next model", "rows + checkpoint")
        view = box("View", "get(at=position)", tone="good", width="1.6")

    callers >> edge("command") >> execute
    execute >> edge("append at\nthe version read", tone="warn") >> log
    log >> edge("facts, in order") >> live
    log >> edge("from 1 on", tone="quiet", dashed=True) >> built
    log >> edge("at least\nonce") >> reaction
    live >> edge("one script") >> rows
    built >> edge("one script", tone="quiet", dashed=True) >> rows2
    rows >> edge("row, position", tone="good") >> view
    rows2 >> edge("after the\nswitch", tone="quiet", dashed=True) >> view
    view >> edge("answer", tone="good", constraint="false") >> callers
