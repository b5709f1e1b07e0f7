//go:build amd64 || arm64

package flow

import "unsafe"

// fetch begins to read two cache lines, and does not wait for them.
//
//go:noescape
func fetch(line, next unsafe.Pointer)
