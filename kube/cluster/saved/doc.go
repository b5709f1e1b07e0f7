// Package saved keeps the last snapshot of a cluster on its node's disk, so that an agent can start while no API
// server answers, and need not wait for lists while one does.
//
// # What is kept
//
// One file holds the objects as they are reduced in memory, in protobuf, behind a line with the version of the format
// and a header that says whose snapshot it is. A SHA-256 of all of that ends the file. Secrets are never in it.
//
// # What is believed
//
// The file is a claim about the whole cluster, so nobody but the agent may have written it: it must be a regular file
// of the agent's user that nobody else may write, although others may write its directory. A file that is damaged, of
// another version, of another node or cluster, or without a kind that this agent reads is left out whole, and the
// reason is told. A file without a kind could come from a version that did not know the kind, and to go on without its
// objects could open what they close.
//
// # When it is written
//
// A Writer writes the latest snapshot beside the file, syncs it, and renames it. It rests after each time, so that it
// writes a megabyte a second at most on average; it writes once more when it is stopped. The file's time of
// modification says until when its objects were those of the API server.
//
// When it cannot be written, the file that is there stays, unless there are policies and what they judge by has
// changed. Then it is removed first, which may make the room, and an agent that starts without an API server waits for
// one: it is closed, and not open to whom a policy has shut out since. That is told either way, and tried again.
//
// A snapshot in which the node has other pod ranges than in the file removes the file at once: an agent cannot change
// its ranges, so one that began with the old ones would have to start anew, again and again if the disk were full.
package saved
