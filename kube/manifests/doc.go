// Package manifests gives the objects of a cluster out of files: the same YAML that kubectl takes, several documents to
// a file, several files to a directory. It is the source of an agent without an API server, and reads a lab's file.
// What a file may say, and what is told of its mistakes, is the business of package codec.
//
// # Watching
//
// Watch is level-triggered. An event of fsnotify says no more than that something may have changed at a path: after a
// pause of a few milliseconds that file is looked at, decoded when its content differs from before, and one complete
// snapshot is given out. So it does not matter in which of the many ways an editor saves (in place, rename, delete and
// create). When events were lost, or the event's path does not say it all (a folder comes, or some file is a symlink,
// whose target may be swapped), the whole directory is listed. A file with a mistake keeps the objects it had before.
//
// A snapshot shares with the one before the objects, and the lists, that have not changed: see kube.Objects.Replace.
// What a change costs hangs on what changed, and not on what else there is.
//
// # Status
//
// The agents of such a cluster share the directory. Each writes one file, status/<node>.yaml, with a Node that has
// annotations and a status; readers lay these over the Nodes of the same name. A status file without a Node is ignored:
// what nodes there are is said by the files of the user alone.
package manifests
