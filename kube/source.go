package kube

import "time"

// SourceState is how it stands with where Objects come from.
type SourceState struct {
	// Synced: everything has been read once.
	Synced bool
	// Waiting names what has not, and why.
	Waiting []string
	// Server is the API server that answered last, "host:port"; "" for a source that is none.
	Server string
	// Age is how old the state in force may be: 0 while it is up to date.
	Age time.Duration
	// Err is why it is so old, or nil.
	Err error
}
