"""The process beside the master that runs the operator's code for it.

The master must never block, and a mistake in somebody else's code must not end it. So the hooks
of a configuration file in Python and the handlers of --log-config run here. It is started when
there is either of them, gets one JSON object per line through a socket, and ends when the master
closes it. A master that finds it dead writes its log itself, and starts another one.

    master -> attendant   configure   the first: log configuration, file with hooks, title
                          record      a line of the master's log
                          hook        an event, its server and perhaps its worker
                          reopen      the log files were moved
    attendant -> master   ready       with the level below which records are not wanted
                          problem     why it is of no use; it ends

`python -m asgiri.attendant FILE FD` is another thing of the same kind: it runs FILE, tells its
values as one JSON object, and ends.
"""
