// Package sbom writes a bill of materials. It lists the modules that the programs of a release are made of, as the go
// command recorded them in the programs. The format is SPDX 2.3 in JSON (https://spdx.github.io/spdx-spec/v2.3/).
package sbom

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// Release is the release that the bill describes.
type Release struct {
	// Name and Version are those of the release. Created is its time.
	Name, Version string
	Created       time.Time
	Programs      []Program
}

// Program is one executable file.
type Program struct {
	// File is the path in the release, such as "linux-amd64/tapestry".
	File   string
	SHA256 [sha256.Size]byte
	Info   *debug.BuildInfo
	// License is an SPDX expression; "" makes no statement about the license.
	License string
}

const (
	noAssertion = "NOASSERTION"
	document    = "SPDXRef-DOCUMENT"
)

type spdx struct {
	Version       string         `json:"spdxVersion"`
	DataLicense   string         `json:"dataLicense"`
	ID            string         `json:"SPDXID"`
	Name          string         `json:"name"`
	Namespace     string         `json:"documentNamespace"`
	Creation      creation       `json:"creationInfo"`
	Packages      []spdxPackage  `json:"packages"`
	Relationships []relationship `json:"relationships"`
}

type creation struct {
	Created  string   `json:"created"`
	Creators []string `json:"creators"`
}

type spdxPackage struct {
	ID        string     `json:"SPDXID"`
	Name      string     `json:"name"`
	Version   string     `json:"versionInfo,omitempty"`
	FileName  string     `json:"packageFileName,omitempty"`
	Location  string     `json:"downloadLocation"`
	Analyzed  bool       `json:"filesAnalyzed"`
	Checksums []checksum `json:"checksums,omitempty"`
	Concluded string     `json:"licenseConcluded"`
	Declared  string     `json:"licenseDeclared"`
	Copyright string     `json:"copyrightText"`
	Purpose   string     `json:"primaryPackagePurpose"`
	External  []external `json:"externalRefs,omitempty"`
}

type checksum struct {
	Algorithm string `json:"algorithm"`
	Value     string `json:"checksumValue"`
}

type external struct {
	Category string `json:"referenceCategory"`
	Type     string `json:"referenceType"`
	Locator  string `json:"referenceLocator"`
}

type relationship struct {
	From string `json:"spdxElementId"`
	Type string `json:"relationshipType"`
	To   string `json:"relatedSpdxElement"`
}

// module is a module that programs are made of: a dependency, or the standard library.
type module struct{ path, version string }

// Write writes the bill. The same release always gives the same bill.
func Write(w io.Writer, r Release) error {
	doc := spdx{
		Version: "SPDX-2.3", DataLicense: "CC0-1.0", ID: document, Name: r.Name + "-" + r.Version,
		Creation: creation{r.Created.UTC().Format(time.RFC3339), []string{"Tool: " + r.Name + "-release"}},
	}
	uses := map[module][]string{} // by which programs use them
	for _, p := range slices.SortedFunc(slices.Values(r.Programs), func(a, b Program) int { return cmp.Compare(a.File, b.File) }) {
		if p.Info == nil {
			return fmt.Errorf("%s says nothing about how it was built", p.File)
		}
		id := ref("File", p.File)
		doc.Packages = append(doc.Packages, spdxPackage{
			ID: id, Name: p.Info.Path, Version: r.Version, FileName: p.File, Location: noAssertion,
			Checksums: []checksum{{"SHA256", hex.EncodeToString(p.SHA256[:])}},
			Concluded: noAssertion, Declared: cmp.Or(p.License, noAssertion), Copyright: noAssertion, Purpose: "APPLICATION",
		})
		doc.Relationships = append(doc.Relationships, relationship{document, "DESCRIBES", id})
		for _, m := range modules(p.Info) {
			uses[m] = append(uses[m], id)
		}
	}
	sorted := make([]module, 0, len(uses))
	for m := range uses {
		sorted = append(sorted, m)
	}
	slices.SortFunc(sorted, func(a, b module) int { return cmp.Or(cmp.Compare(a.path, b.path), cmp.Compare(a.version, b.version)) })
	for _, m := range sorted {
		id := ref("Module", m.path+"-"+m.version)
		doc.Packages = append(doc.Packages, spdxPackage{
			ID: id, Name: m.path, Version: m.version, Location: noAssertion, Concluded: noAssertion, Declared: noAssertion, Copyright: noAssertion,
			Purpose: "LIBRARY", External: []external{{"PACKAGE-MANAGER", "purl", "pkg:golang/" + m.path + "@" + strings.ReplaceAll(m.version, "+", "%2B")}},
		})
		for _, program := range uses[m] {
			doc.Relationships = append(doc.Relationships, relationship{program, "DEPENDS_ON", id})
		}
	}
	// A document's namespace must be unique (6.5), so it is made from the document's content.
	body, err := json.Marshal(doc)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(body)
	doc.Namespace = "https://tapestry.dev/spdx/" + doc.Name + "-" + hex.EncodeToString(sum[:16])
	out := json.NewEncoder(w)
	out.SetIndent("", " ")
	return out.Encode(doc)
}

// modules returns the modules that a program is linked with.
func modules(info *debug.BuildInfo) []module {
	out := []module{{"stdlib", strings.TrimPrefix(info.GoVersion, "go")}}
	for _, m := range info.Deps {
		if m.Replace != nil {
			m = m.Replace
		}
		out = append(out, module{m.Path, m.Version})
	}
	return out
}

var notInIDs = regexp.MustCompile(`[^A-Za-z0-9.-]+`)

// ref returns an identifier. Identifiers have only these characters (3.2).
func ref(kind, name string) string {
	return "SPDXRef-" + kind + "-" + notInIDs.ReplaceAllString(name, "-")
}
