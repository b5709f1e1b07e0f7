// Package version says which build a program is.
package version

import (
	"runtime"
	"runtime/debug"
)

// Unknown is the name of a build that has no version: one from an archive, or with -buildvcs=false.
const Unknown = "development"

// stamped is set by the linker (-X) to what "git describe" said in the tree that was built.
var stamped string

// String returns the tag or commit from which this program was built, such as v1.2.0 or 798d9a51f3c2, followed by
// -dirty when files had been changed. It returns Unknown when neither the linker nor the go command knew.
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

// UserAgent returns the name under which this program makes requests to API servers, for their logs.
func UserAgent() string {
	return "tapestry/" + String() + " (" + runtime.GOOS + "/" + runtime.GOARCH + ")"
}

// of returns what the go command wrote into a program: the version of a module that it installed, or else the commit.
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
