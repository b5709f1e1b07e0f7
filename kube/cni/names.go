package cni

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"unicode"
)

// maxName is the longest name in bytes: Kubernetes' longest.
const maxName = 253

// word is what CNI (specification 1.1.0, "Parameters") lets a container and a network be called. Names of Kubernetes
// are among them. None has a slash: of a pod's namespace and name, joined by one, each is to be told from the other.
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

// CheckNames judges what a pod that is to be attached is called.
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

// checkIfName is the kernel's rule for names of interfaces (dev_valid_name), and nothing invisible.
func checkIfName(name string) error {
	bad := func(r rune) bool {
		return r == '/' || r == ':' || r == unicode.ReplacementChar || unicode.IsSpace(r) || !unicode.IsPrint(r)
	}
	if len(name) > 15 || name == "." || name == ".." || strings.ContainsFunc(name, bad) {
		return fmt.Errorf("ifname: %q is no name of an interface: expected 1 to 15 printable characters without '/', ':' and spaces", name)
	}
	return nil
}
