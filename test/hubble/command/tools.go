//go:build tools

// Package command keeps Hubble's command in go.mod and go.sum, which no package here imports. It is a module of its
// own, since it needs other versions of Kubernetes' modules than Tapestry does.
package command

import _ "github.com/cilium/cilium/hubble"
