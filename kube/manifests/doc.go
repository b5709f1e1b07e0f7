// Package manifests gives the objects of a cluster out of files: the same YAML that kubectl takes, several documents to a
// file, several files to a directory. It is the source of an agent without an API server, and the parser of a lab's file.
//
// # Strict
//
// A file is written by hand, so everything in it that would be ignored is refused: unknown fields, wrong types, kinds
// Tapestry has no use for, the same object twice. Parse tells all such mistakes of a file at once, each with file, line,
// object and field. Two decoders share the work. sigs.k8s.io/json, which the API server uses, decides what is right. Only
// when it refuses, a walk over the YAML nodes along the Go type says what is wrong and in which line.
//
// # Watching
//
// Watch is level-triggered. An event of fsnotify says no more than that something may have changed: after a pause of a few
// milliseconds the directory is listed again, what differs from before is parsed, and one complete snapshot is given out.
// So it does not matter in which of the many ways an editor saves (in place, rename, delete and create, symlink swap) or
// whether events were lost. A file that does not parse keeps the objects it had before.
//
// # Status
//
// The agents of such a cluster share the directory. Each writes one file, status/<node>.yaml, with a Node that has
// annotations and a status; readers lay these over the Nodes of the same name. A status file without a Node is ignored: what
// nodes there are is said by the files of the user alone.
package manifests
