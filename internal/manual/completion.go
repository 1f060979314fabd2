package manual

import (
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
)

// Shells are those for which there is a completion.
func Shells() map[string]func(*kong.Application) string {
	return map[string]func(*kong.Application) string{"bash": bash, "zsh": zsh, "fish": fish}
}

// quote makes of any text one word of any of the shells.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// position is how the scripts name where the cursor is: the commands before it, each behind a space.
func position(at string) string {
	if at == "" {
		return ""
	}
	return " " + at
}

// steps are the cases by which bash and zsh walk through what is typed: a command leads on, and what follows a flag with a
// value is that value.
func steps(program command) string {
	var b strings.Builder
	program.each(func(c command) {
		var valued []string
		for _, f := range c.everyFlag(program) {
			if f.value.name == "" {
				continue
			}
			for _, name := range f.names {
				valued = append(valued, quote(position(c.at)+" "+name))
			}
		}
		if len(valued) > 0 {
			fmt.Fprintf(&b, "            %s) i=$((i + 1)) ;;\n", strings.Join(valued, "|"))
		}
		for _, child := range c.commands {
			fmt.Fprintf(&b, "            %s) at=%s ;;\n", quote(position(child.at)), quote(position(child.at)))
		}
	})
	return b.String()
}

// arms has one case for each flag that takes a value, and what value makes of that.
func arms(program command, of func(value) string) string {
	var b strings.Builder
	program.each(func(c command) {
		for _, f := range c.everyFlag(program) {
			if f.value.name == "" {
				continue
			}
			var names []string
			for _, name := range f.names {
				names = append(names, quote(position(c.at)+" "+name))
			}
			fmt.Fprintf(&b, "        %s) %s; return ;;\n", strings.Join(names, "|"), of(f.value))
		}
	})
	return b.String()
}

func bash(app *kong.Application) string {
	program := tree(app.Node)
	var b strings.Builder
	fmt.Fprintf(&b, `# Completion of %[1]s's commands in bash. Made by: %[1]s completion bash

_%[1]s() {
    local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]} at='' i commands='' flags='' files=''
    COMPREPLY=()
    for ((i = 1; i < COMP_CWORD; i++)); do
        case "$at ${COMP_WORDS[i]}" in
%[2]s        esac
        # --flag=value is three words
        if [[ ${COMP_WORDS[i]} == "=" ]]; then i=$((i + 1)); fi
    done
    if [[ $cur == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD - 1]} cur=''; fi
    if [[ $prev == "=" ]]; then prev=${COMP_WORDS[COMP_CWORD - 2]}; fi
    case "$at $prev" in
%[3]s    esac
    case "$at" in
`, program.program, steps(program), arms(program, bashValue))
	program.each(func(c command) {
		var words, flags []string
		files := ""
		for _, child := range c.commands {
			words = append(words, lastWord(child.at))
		}
		for _, a := range c.args {
			words = append(words, a.values...)
			if a.file {
				files = "yes"
			}
		}
		for _, f := range c.everyFlag(program) {
			flags = append(flags, f.names...)
		}
		fmt.Fprintf(&b, "        %s) commands=%s flags=%s files=%s ;;\n", quote(position(c.at)),
			quote(strings.Join(words, " ")), quote(strings.Join(flags, " ")), quote(files))
	})
	fmt.Fprintf(&b, `    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "$flags" -- "$cur")
    elif [[ -n $files ]]; then
        compopt -o filenames 2>/dev/null
        mapfile -t COMPREPLY < <(compgen -f -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -W "$commands" -- "$cur")
    fi
}
complete -F _%[1]s %[1]s
`, program.program)
	return b.String()
}

func bashValue(v value) string {
	switch {
	case len(v.values) > 0:
		return "mapfile -t COMPREPLY < <(compgen -W " + quote(strings.Join(v.values, " ")) + ` -- "$cur")`
	case v.file:
		return `compopt -o filenames 2>/dev/null; mapfile -t COMPREPLY < <(compgen -f -- "$cur")`
	}
	return ":"
}

func lastWord(at string) string { return at[strings.LastIndexByte(at, ' ')+1:] }

func zsh(app *kong.Application) string {
	program := tree(app.Node)
	var b strings.Builder
	fmt.Fprintf(&b, `#compdef %[1]s
# Completion of %[1]s's commands in zsh. Made by: %[1]s completion zsh

_%[1]s() {
    local at='' i
    local -a subcommands flags
    for ((i = 2; i < CURRENT; i++)); do
        case "$at ${words[i]}" in
%[2]s        esac
    done
    case "$at ${words[CURRENT - 1]}" in
%[3]s    esac
    case "$at" in
`, program.program, steps(program), arms(program, func(v value) string {
		switch {
		case len(v.values) > 0:
			return "subcommands=(" + quotedWords(v.values) + "); _describe value subcommands"
		case v.file:
			return "_files"
		}
		return "_message " + quote(v.name)
	}))
	program.each(func(c command) {
		var flags, commands []string
		for _, f := range c.everyFlag(program) {
			for _, name := range f.names {
				flags = append(flags, described(name, f.help))
			}
		}
		for _, child := range c.commands {
			commands = append(commands, described(lastWord(child.at), child.help))
		}
		files := slices.ContainsFunc(c.args, func(a value) bool { return a.file })
		for _, a := range c.args {
			for _, v := range a.values {
				commands = append(commands, described(v, a.help))
			}
		}
		fmt.Fprintf(&b, "        %s)\n            flags=(%s)\n            subcommands=(%s)\n", quote(position(c.at)), quotedWords(flags), quotedWords(commands))
		if files {
			b.WriteString("            if [[ ${words[CURRENT]} != -* ]]; then _files; return; fi\n")
		}
		b.WriteString("            ;;\n")
	})
	fmt.Fprintf(&b, `    esac
    if [[ ${words[CURRENT]} == -* ]]; then
        _describe -o option flags
    else
        _describe command subcommands
    fi
}
if [[ $zsh_eval_context[-1] == loadautofunc ]]; then _%[1]s "$@"; else compdef _%[1]s %[1]s; fi
`, program.program)
	return b.String()
}

// described is a word and what it means, as _describe takes them.
func described(word, help string) string {
	return strings.ReplaceAll(word, ":", `\:`) + ":" + help
}

func quotedWords(words []string) string {
	quoted := make([]string, len(words))
	for i, word := range words {
		quoted[i] = quote(word)
	}
	return strings.Join(quoted, " ")
}

func fish(app *kong.Application) string {
	program := tree(app.Node)
	var b strings.Builder
	fmt.Fprintf(&b, `# Completion of %[1]s's commands in fish. Made by: %[1]s completion fish

# Says whether the commands before the cursor are these.
function __%[1]s_at
    set -l at ''
    set -l value 0
    for word in (commandline -opc)[2..]
        if test $value = 1
            set value 0
            continue
        end
        switch "$at $word"
`, program.program)
	program.each(func(c command) {
		for _, f := range c.everyFlag(program) {
			for _, name := range f.names {
				if f.value.name != "" {
					fmt.Fprintf(&b, "            case %s\n                set value 1\n", fishQuote(position(c.at)+" "+name))
				}
			}
		}
		for _, child := range c.commands {
			fmt.Fprintf(&b, "            case %s\n                set at %s\n", fishQuote(position(child.at)), fishQuote(position(child.at)))
		}
	})
	fmt.Fprintf(&b, "        end\n    end\n    test \"$at\" = \"$argv[1]\"\nend\n\ncomplete -c %s -f\n", program.program)
	program.each(func(c command) {
		when := fmt.Sprintf("complete -c %s -n %s", program.program, fishQuote("__"+program.program+"_at "+fishQuote(position(c.at))))
		for _, child := range c.commands {
			fmt.Fprintf(&b, "%s -a %s -d %s\n", when, fishQuote(lastWord(child.at)), fishQuote(child.help))
		}
		for _, a := range c.args {
			if a.file {
				fmt.Fprintf(&b, "%s -F\n", when)
			}
			for _, v := range a.values {
				fmt.Fprintf(&b, "%s -a %s\n", when, fishQuote(v))
			}
		}
		for _, f := range c.everyFlag(program) {
			line := []string{when}
			for _, name := range f.names {
				if long, ok := strings.CutPrefix(name, "--"); ok {
					line = append(line, "-l", long)
				} else {
					line = append(line, "-s", strings.TrimPrefix(name, "-"))
				}
			}
			switch {
			case f.value.file:
				line = append(line, "-r", "-F")
			case f.value.name != "":
				line = append(line, "-x")
			}
			if len(f.value.values) > 0 {
				line = append(line, "-a", fishQuote(strings.Join(f.value.values, " ")))
			}
			fmt.Fprintf(&b, "%s -d %s\n", strings.Join(line, " "), fishQuote(f.help))
		}
	})
	return b.String()
}

// fishQuote is quote for fish, in which a backslash counts between quotes.
func fishQuote(text string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, "'", `\'`).Replace(text) + "'"
}
