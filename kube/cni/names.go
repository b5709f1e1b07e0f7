package cni

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// maxName is the longest name in bytes, as in Kubernetes.
const maxName = 253

// word matches the names that CNI allows for containers and networks (specification 1.1.0, "Parameters"). Names of
// Kubernetes match too. A slash does not, because it separates a pod's namespace from its name.
var word = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

func checkWord(field, value string) error {
	if len(value) > maxName {
		return fmt.Errorf("%s: %d bytes are too long for a name: expected %d at most", field, len(value), maxName)
	}
	if !word.MatchString(value) {
		return fmt.Errorf("%s: %q is no name: expected letters, digits, '.', '_' and '-', the first a letter or digit", field, value)
	}
	return nil
}

// CheckNames checks the names of a pod that is to be attached.
func (p *Pod) CheckNames() error {
	if err := p.checkNamed(); err != nil {
		return err
	}
	err := errors.Join(checkWord("namespace", p.Namespace), checkWord("name", p.Name))
	if p.ContainerID != "" {
		err = errors.Join(err, checkWord("containerID", p.ContainerID))
	}
	if p.Network != "" {
		err = errors.Join(err, checkWord("network", p.Network))
	}
	if p.UID != "" {
		err = errors.Join(err, checkWord("uid", p.UID))
	}
	if p.IfName != "" {
		err = errors.Join(err, checkIfName(p.IfName))
	}
	return err
}

// checkIfName applies the kernel's rule for names of interfaces (dev_valid_name), and refuses invisible characters.
func checkIfName(name string) error {
	bad := func(r rune) bool {
		return r == '/' || r == ':' || r == unicode.ReplacementChar || unicode.IsSpace(r) || !unicode.IsPrint(r)
	}
	if len(name) > 15 || name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("ifname: %q is no name of an interface: expected 1 to 15 printable characters without '/', ':' and spaces", name)
	}
	return nil
}
