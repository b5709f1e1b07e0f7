package manifests

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	corev1 "k8s.io/api/core/v1"

	"tapestry.dev/tapestry/kube"
)

// StatusDir is the folder, in a directory of manifests, in which the agents publish their Nodes.
const StatusDir = "status"

// Read returns the objects of files and directories, merged and sorted. In a directory it reads *.yaml, *.yml and
// *.json. It reads no subdirectories, except status/, which it merges into the Nodes. The error joins all mistakes in
// all files.
func Read(paths ...string) (kube.Objects, error) {
	var parts []kube.Objects
	var status []*corev1.Node
	var errs []error
	for _, path := range paths {
		info, err := os.Stat(path)
		if err != nil {
			errs = append(errs, fmt.Errorf("read manifests: %w: expected a YAML file or a directory of them", err))
			continue
		}
		var t tree
		if info.IsDir() {
			t = tree{dir: path}
			errs = append(errs, t.scan(nil)...)
		} else {
			f := &file{}
			t = tree{files: map[string]*file{path: f}}
			_, err := f.take(readFile(path, content{}))
			errs = append(errs, err)
		}
		parts = append(parts, t.parts()...)
		status = append(status, t.status()...)
	}
	all, err := kube.Merge(parts...)
	return (&layers{}).over(all, status), errors.Join(append(errs, err)...)
}

func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") { // temporary files of editors and of Write
		return false
	}
	switch filepath.Ext(name) {
	case ".yaml", ".yml", ".json":
		return true
	}
	return false
}
