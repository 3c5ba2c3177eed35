r"""What commands and environments of LaTeX mean where text is wanted: tables, no code.

A word here is a command without its backslash, or an environment.
"""

# Commands that go, by what goes with them: nothing, an option, arguments, a length, a file's name.
# Those that set their argument in some type are among the first: braces go anyway.
DROPPED = {
    "nothing": """noindent indent medskip bigskip smallskip medbreak bigbreak smallbreak goodbreak
        break centering raggedright raggedleft newpage clearpage cleardoublepage maketitle makeindex
        listoffigures listoftables hline it bf em rm sl sf tt sc itshape slshape bfseries mdseries
        ttfamily sffamily rmfamily upshape scshape normalfont normalsize tiny scriptsize
        footnotesize small large Large LARGE huge Huge hfill vfill hfil vfil appendix frontmatter
        mainmatter backmatter protect relax null leavevmode strut phantomsection qed qedhere
        makeatletter makeatother xspace selectfont onecolumn balance flushbottom raggedbottom sloppy
        fussy allowbreak nobreak displaystyle textstyle unskip ignorespaces begingroup endgroup
        bgroup egroup boldmath unboldmath textbf textit emph textrm textsf texttt textsc textsl
        textup textmd textnormal underline mbox hbox text uline printindex singlespacing
        doublespacing today hrule endinput filbreak fi else or global long centerline leftline
        rightline""",
    "option": """pagebreak nopagebreak linebreak nolinebreak tableofcontents printbibliography
        footnotemark twocolumn allowdisplaybreaks toprule midrule bottomrule addlinespace""",
    "1": """label index vspace hspace includeonly bibliography bibliographystyle pagestyle
        thispagestyle pagenumbering documentclass documentstyle usepackage RequirePackage
        includegraphics graphicspath author date address email affiliation affil institute
        institution keywords subjclass thanks curraddr urladdr dedicatory addbibresource nocite
        markright hyphenation setstretch linespread phantom hphantom vphantom cline cmidrule
        hypersetup newcounter stepcounter refstepcounter usetikzlibrary theoremstyle color
        pagecolor bibitem setlist geometry authorrunning titlerunning orcid hypertarget textcolor
        colorbox href parbox raisebox scalebox rotatebox foreignlanguage newlength newsavebox usebox
        pacs preprint selectlanguage""",
    "2": """fcolorbox resizebox multicolumn multirow setlength addtolength setcounter addtocounter
        markboth rule numberwithin fontsize""",
    "3": "addcontentsline newenvironment renewenvironment definecolor",
    "length": """vskip hskip vglue hglue kern parindent parskip baselineskip hsize vsize hoffset
        voffset magnification textwidth textheight oddsidemargin evensidemargin topmargin
        headheight headsep""",
    "name": "input include subfile",
    "definition": "def gdef edef xdef",
}
HEADINGS = """part chapter section subsection subsubsection paragraph subparagraph title subtitle
    frametitle"""
SIGNS = r"""textendash=– textemdash=— textquoteleft=‘ textquoteright=’ textquotedblleft=“
    textquotedblright=” guillemotleft=« guillemotright=» ldots=... dots=... textellipsis=...
    textbackslash=\ textasciitilde=~ textasciicircum=^ textbar=| textless=< textgreater=>
    textunderscore=_ textdollar=\$ textdegree=° textbullet=• copyright=© pounds=£ euro=€ S=§ P=¶
    dag=† ddag=‡ slash=/ TeX=TeX LaTeX=LaTeX LaTeXe=LaTeX2e BibTeX=BibTeX \%=% \&=& \#=# \_=_ \{={
    \}=} \!= \/= \-= \@= \*= --=– ---=— ``=“ ''=” `='"""
WRITTEN = dict(sign.split("=", 1) for sign in SIGNS.split()) | {
    **dict.fromkeys(("par", "endgraf"), "\n\n"),
    **dict.fromkeys(("newline", "tabularnewline", "cr", "\\\n"), "\n"),
    **dict.fromkeys(("quad", "qquad", "enspace", "thinspace", "space"), " "),
    **dict.fromkeys(("~", "\\ ", "\\,", "\\;", "\\:", "\\>"), " "),
    **dict.fromkeys(("acknowledgments", "acknowledgements"), "\n\nAcknowledgements\n\n"),
}
LETTERS = """ss=ß ae=æ AE=Æ oe=œ OE=Œ aa=å AA=Å o=ø O=Ø l=ł L=Ł i=ı j=ȷ dh=ð DH=Ð th=þ TH=Þ dj=đ
    DJ=Đ ng=ŋ NG=Ŋ"""
# Code points of combining marks.
ACCENTS = r"""\`=300 \'=301 \^=302 \~=303 \==304 u=306 \.=307 \"=308 r=30A H=30B v=30C d=323 c=327
    k=328 b=331 t=361"""
THEOREM_NAMES = """
    theorem=theorem,thm,theo,teo,theor,mainthm,maintheorem lemma=lemma,lem,lemm,lma,sublemma
    proposition=proposition,prop,propn,propo,prp corollary=corollary,cor,coro,corol,crl
    definition=definition,defn,defi,defin,dfn,df,def remark=remark,rem,rmk,rmq,rk remarks=remarks
    example=example,exam,exmp,exa,eg,expl examples=examples,egs exercise=exercise,exer,exercice
    conjecture=conjecture,conj claim=claim,clm fact=fact observation=observation,obs
    question=question,ques problem=problem,prob assumption=assumption,assum,ass axiom=axiom
    hypothesis=hypothesis note=note notation=notation condition=condition property=property
    criterion=criterion construction=construction convention=convention situation=situation
    warning=warning solution=solution proof=proof,prf,pf algorithm=algorithm case=case
    principle=principle"""
THEOREMS = {
    name: title.capitalize() + "."
    for title, _, names in (entry.partition("=") for entry in THEOREM_NAMES.split())
    for name in names.split(",")
} | {
    "abstract": "Abstract",
    **dict.fromkeys(("ack", "acknowledgments", "acknowledgements"), "Acknowledgements"),
}
PROOFS = ("proof", "prf", "pf")
DRAWINGS = """thebibliography tikzpicture pspicture picture pgfpicture CCSXML filecontents overpic
    forest feynmandiagram asy keywords"""
# By number of arguments; an option after the name goes anyway.
ENVIRONMENTS = {
    "1": """tabular longtable supertabular tabu tblr array minipage multicols adjustbox spacing
        column subfigure subtable thebibliography""",
    "2": "tabular* tabularx tabulary wrapfigure wraptable list adjustwidth addmargin",
}
