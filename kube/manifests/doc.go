// Package manifests reads the objects of a cluster from files. They hold the YAML that kubectl takes, with several
// documents to a file and several files to a directory. It is the source of an agent without an API server, and reads
// a lab's file. Package codec defines what a file may contain, and explains its mistakes.
//
// # Watching
//
// Watch is level-triggered. An event of fsnotify only says that something may have changed at a path. After a pause
// of a few milliseconds Watch reads that file, decodes it when its content has changed, and delivers one complete
// snapshot. So it does not matter in which way an editor saves a file (in place, rename, delete and create). Watch
// lists the whole directory when events were lost, or when an event's path does not tell everything: a folder has
// appeared, or some file is a symlink, whose target may be swapped. A file with a mistake keeps the objects it had
// before.
//
// A snapshot shares unchanged objects and lists with the one before: see kube.Objects.Replace. The cost of a change
// depends on what has changed, not on the size of the directory.
//
// # Status
//
// The agents of a standalone cluster share the directory. Each writes one file, status/<node>.yaml, with a Node that
// has annotations and a status; readers merge it into the Node of the same name. A status file without such a Node is
// ignored: only the user's files say which nodes there are.
package manifests
