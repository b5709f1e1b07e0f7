// Package version tells which build a program is.
package version

import (
	"runtime"
	"runtime/debug"
)

// Unknown is what a build is called that nothing says more about: one out of an archive, or with -buildvcs=false.
const Unknown = "development"

// stamped is set by the linker (-X): what "git describe" said in the tree that was built.
var stamped string

// String is the tag or commit that this program was built from, such as v1.2.0 or 798d9a51f3c2, followed by -dirty
// when files of it had been changed; Unknown when neither the linker nor the go command knew.
func String() string {
	if stamped != "" {
		return stamped
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return Unknown
	}
	return of(info)
}

// UserAgent is what API servers are told of who asks, for their logs.
func UserAgent() string {
	return "tapestry/" + String() + " (" + runtime.GOOS + "/" + runtime.GOARCH + ")"
}

// of is what the go command wrote into a program: the version of a module that was installed by it, or else the commit.
func of(info *debug.BuildInfo) string {
	if v := info.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	var commit, changed string
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			commit = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			changed = "-dirty"
		}
	}
	if commit == "" {
		return Unknown
	}
	return commit + changed
}
