package codec

import (
	"bytes"
	"errors"
	"io"
	"regexp"
	"sort"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// The errors of the YAML parser are mere strings. Those of its scanner say in which line they are. Those of its grammar
// say where the list or mapping begins in which they are, and count lines from 0.
var (
	yamlError    = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)
	grammarError = regexp.MustCompile(`^did not find expected (',' or|node content|<)`)
	indentError  = regexp.MustCompile(`^did not find expected (key|'-' indicator)`)
)

// syntaxError finds the line of an error of the YAML parser.
func syntaxError(data []byte, err error) (line int, msg string) {
	m := yamlError.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " "))
	if m == nil {
		return 1, err.Error()
	}
	line, _ = strconv.Atoi(m[1]) // no number: the first line
	switch msg = m[2]; {
	case indentError.MatchString(msg):
		line = firstBadLine(data, msg)
	case grammarError.MatchString(msg):
		line++
	}
	// The end of the file is where the parser misses things, and may be behind the last line.
	lines := bytes.Count(bytes.TrimRight(data, "\n"), []byte("\n")) + 1
	return min(max(line, 1), lines), msg
}

// firstBadLine searches the shortest beginning of data that has the error already. That is the line of the error
// because any beginning of a good block of YAML, cut between lines, does not have one of this sort.
func firstBadLine(data []byte, msg string) int {
	lines := bytes.SplitAfter(data, []byte("\n"))
	return 1 + sort.Search(len(lines)-1, func(i int) bool {
		err := syntaxOf(bytes.Join(lines[:i+1], nil))
		return err != nil && strings.HasSuffix(err.Error(), msg)
	})
}

// syntaxOf gives the first syntax error of a stream.
func syntaxOf(data []byte) error {
	dec := yaml.NewDecoder(bytes.NewReader(data))
	for {
		var doc yaml.Node
		if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}
