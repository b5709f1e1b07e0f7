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
// # Fast
//
// What programs print, one JSON object to a document or YAML in blocks, is turned into JSON for the decoder in one pass
// over the text (see plain), which costs a tenth of what a complete parser takes. It gives up at whatever is not plain or
// looks wrong, and then the complete parser has the file from its beginning: so there is one meaning and one text for
// each mistake. A fuzz test holds the two against each other.
//
// # Watching
//
// Watch is level-triggered. An event of fsnotify says no more than that something may have changed at a path: after a pause
// of a few milliseconds that file is looked at, parsed when its content differs from before, and one complete snapshot is
// given out. So it does not matter in which of the many ways an editor saves (in place, rename, delete and create). When
// events were lost, or the event's path does not say it all (a folder comes, or some file is a symlink, whose target may
// be swapped), the whole directory is listed. A file that does not parse keeps the objects it had before.
//
// A snapshot shares with the one before the objects, and the lists, that have not changed: see kube.Objects.Replace. What a
// change costs hangs on what changed, and not on what else there is.
//
// # Status
//
// The agents of such a cluster share the directory. Each writes one file, status/<node>.yaml, with a Node that has
// annotations and a status; readers lay these over the Nodes of the same name. A status file without a Node is ignored: what
// nodes there are is said by the files of the user alone.
package manifests
