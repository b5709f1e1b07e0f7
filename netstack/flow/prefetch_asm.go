//go:build amd64 || arm64

package flow

import "unsafe"

// fetch begins to read two cache lines without waiting for them.
//
//go:noescape
func fetch(line, next unsafe.Pointer)
