// Package kube holds what Tapestry keeps of Kubernetes: the objects of a cluster as one value, and the problems
// found in them.
//
// Objects come from one of two sources (package cluster talks to an API server; package manifests reads a
// directory of YAML, which package codec decodes) and go through one pure function (package translate) that turns
// them into the configurations of the data plane. Nothing outside of this folder sees a Kubernetes type.
//
// # Kinds
//
// Kinds is the one list of the kinds of objects that there are, and Objects has a list for each. A new kind is a
// field of Objects, a row in that list, a row in package cluster that says how it is watched and what is kept of
// it, a right in deploy/, and an example in package codec. Tests go through Kinds and say what was forgotten. A
// kind that is known by name alone is a row without a list, so that whoever writes such an object is told that it
// is not served yet.
//
// # Who owns what
//
// An Objects is a snapshot: once a source has given it away, nobody changes the objects in it, neither the source
// nor the receiver. Two snapshots may share objects, so comparing pointers tells cheaply that one has not changed.
//
// # Annotations and labels
//
// The agents of a standalone cluster have no API server to tell one another their WireGuard keys. Each writes them
// as annotations of its own Node (see manifests.Publish); with an API server the same annotations are patched
// there (see cluster.Publish). A NodeStatus says what they mean.
package kube
