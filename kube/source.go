package kube

import "time"

// SourceState describes how well a source of Objects works.
type SourceState struct {
	// Synced is set once everything has been read.
	Synced bool
	// Waiting lists what has not been read yet, and why.
	Waiting []string
	// Server is the API server that answered last, "host:port"; "" for a source without one.
	Server string
	// Answers is set while an API server can be reached, whatever it answers.
	Answers bool
	// Saved is set until everything has been read, when an agent saved objects on this node that can be used meanwhile:
	// when they were up to date.
	Saved time.Time
	// Age is how old the objects in use may be, 0 while they are up to date.
	Age time.Duration
	// Err is why they are old, or nil.
	Err error
}
