// Package tapestry is the root of a userspace network for Kubernetes. See README.md for what it is,
// docs/architecture.md for how it is built. It holds no code; its test keeps the folders' import rules.
package tapestry
