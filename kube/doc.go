// Package kube holds what Tapestry keeps of Kubernetes: a snapshot of the cluster's objects as one value, and the
// problems found in them.
//
// Objects come from one of two sources: package cluster talks to an API server; package manifests reads a directory
// of YAML, which package codec decodes. One pure function (package translate) turns them into the configurations of
// the data plane. Nothing outside this folder sees a Kubernetes type.
//
// # Kinds
//
// Kinds is the one list of the kinds of objects that Tapestry knows, and Objects has a list for each kind it holds. A
// new kind needs a field of Objects, a row in that list, a row in package cluster that says how it is watched and
// what is kept of it, a right in deploy/, and an example in package codec. Tests go through Kinds and report what was
// forgotten. A kind that is known by name alone is a row without a list: whoever writes such an object is told that
// it is not served yet.
//
// # Who owns what
//
// An Objects is a snapshot: once a source has handed it out, neither the source nor the receiver changes the objects
// in it. Two snapshots may share objects, so equal pointers prove cheaply that an object has not changed.
//
// # Annotations and labels
//
// The agents of a standalone cluster have no API server through which to tell one another their WireGuard keys. Each
// agent writes its key as an annotation of its own Node (see manifests.Publish); with an API server the agent patches
// the same annotations there (see cluster.Publish). NodeStatus documents them.
package kube
