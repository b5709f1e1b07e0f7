package image

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// suite is the Debian release of the images' userland.
const suite = "bookworm"

// Debian returns a layer with a small Debian that has these packages. Making it takes a minute or two, and needs
// debootstrap and the mirror of apt's sources.
func (c Cache) Debian(packages ...string) (Layer, error) {
	include := strings.Join(packages, ",")
	root := filepath.Join(string(c), "debian")
	defer os.RemoveAll(root)
	return c.Tree("debian "+suite+" "+include, func() (string, error) {
		mirror, err := mirror("/etc/apt")
		if err != nil {
			return "", err
		}
		if err := os.RemoveAll(root); err != nil {
			return "", err
		}
		cmd := exec.Command("debootstrap", "--variant=minbase", "--include="+include, suite, root, mirror)
		if out, err := cmd.CombinedOutput(); err != nil {
			return "", fmt.Errorf("debootstrap: %w: %s", err, lastLines(out))
		}
		// These files, which no container reads, are half of the layer.
		for _, dir := range []string{"var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/man", "usr/share/locale"} {
			if err := os.RemoveAll(filepath.Join(root, dir)); err != nil {
				return "", err
			}
		}
		return root, os.WriteFile(filepath.Join(root, "etc/resolv.conf"), nil, 0o644)
	})
}

// mirror returns the first mirror in apt's sources that has Debian itself.
func mirror(etc string) (string, error) {
	var files []string
	for _, pattern := range []string{"sources.list", "sources.list.d/*.list", "sources.list.d/*.sources"} {
		f, err := filepath.Glob(filepath.Join(etc, pattern))
		if err != nil {
			return "", err
		}
		files = append(files, f...)
	}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return "", err
		}
		defer f.Close()
		for s := bufio.NewScanner(f); s.Scan(); {
			line := strings.TrimSpace(s.Text())
			if !strings.HasPrefix(line, "deb ") && !strings.HasPrefix(line, "URIs:") {
				continue
			}
			for _, word := range strings.Fields(line) {
				if strings.Contains(word, "://") && strings.HasSuffix(strings.TrimSuffix(word, "/"), "/debian") {
					return word, nil
				}
			}
		}
	}
	return "", fmt.Errorf("%s has no source whose address ends in /debian: the images' userland comes from there", etc)
}

func lastLines(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-5):], "; ")
}
