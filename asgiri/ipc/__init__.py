"""The contract between the processes: all that master, workers and admin know of each other.

The master owns every socket. It starts workers as fresh interpreters and shares with each of them:

    control channel      messages both ways: hello, ready, drain       `channel`, `messages`
    connection channel   accepted TCP connections, as descriptors      `channel`
    segment              sealed memfd: two pages of numbers, a ring    `segment`, `scoreboard`
    record channel       QUIC datagrams, through the ring and two      `ring`, `counter`, `records`
                         pipes, or through a stream pair               `stream`, `records`

and, with HTTP/3, its UDP sockets, on which workers send and never read. The admin worker and
`asgiri ctl` get the board instead, on which the master tells what all of them count (`board`);
`ctl` gives its orders through a socket of the master's (`control`).

Segment, one per incarnation of a worker:

    offset   size   field         writer   meaning
    0        4096   scoreboard    worker   512 u64 cells: heartbeat, load, counters
    4096     4096   assignments   master   512 u64 cells: what the master has sent it
    8192     size   ring          master   datagram records, wrapping at `size`
    ...      65536  stacks        worker   text: where it stands, when the master asks

Datagram record, the same bytes in ring and stream, little-endian:

    u16 payload_size | u16 gso_size | u8 flags | u8 peer_size | u16 magic | peer | payload

Connection ID, 17 bytes, by which the master chooses the worker without a table (`connection_id`):

    octet (3 bits key codepoint) | AES-128-ECB(u32 server_id | u8 kind | u32 worker_id | u56 nonce)

Tokens of stateless reset and Retry come from the same root secret, so that a restarted master, and
every host with the same secret, honours what another one issued (`tokens`).

What holds everywhere:

* Nobody waits. Every call returns at once with a result, "nothing now" or "full".
* A process may die at any instruction. What it had not published does not exist, what it had not
  read is read back (connections) or lost like a packet (datagrams), and its successor gets new
  memory, new channels and a new worker_id.
* A worker is believed nothing that could hurt another: it can falsify its own numbers, spoil its
  own ring and send rubbish over its own channels, which is counted.
* A descriptor has one owner. Sending does not close; receiving makes an owner.

Import the modules; this package re-exports nothing.
"""
